package counter

import "github.com/holdfastdb/holdfast/fsm"

// Calendar is a window aligned to the calendar, in UTC. Stored: never reorder.
type Calendar uint8

// The calendar windows. None means windows of Params.Window aligned to the Unix epoch.
const (
	None   Calendar = 0
	Minute Calendar = 1
	Hour   Calendar = 2
	Day    Calendar = 3
	Week   Calendar = 4 // from Monday, as ISO 8601 has it
	Month  Calendar = 5
	Year   Calendar = 6
)

var calendarNames = [...]string{"", "minute", "hour", "day", "week", "month", "year"}

func (c Calendar) String() string {
	if int(c) < len(calendarNames) {
		return calendarNames[c]
	}
	return ""
}

// ParseCalendar finds a calendar window by its name; "" is None.
func ParseCalendar(name string) (Calendar, bool) {
	for c, n := range calendarNames {
		if n == name {
			return Calendar(c), true
		}
	}
	return 0, false
}

// Window returns the longest that the calendar window can be, in milliseconds, 0 for None.
func (c Calendar) Window() fsm.Millis {
	return [...]fsm.Millis{0, minute, hour, day, week, 31 * day, 366 * day}[c]
}

const (
	minute = 60 * 1000
	hour   = 60 * minute
	day    = 24 * hour
	week   = 7 * day

	// mondayOffset is the time from the Monday before the epoch, a Thursday, to the epoch.
	mondayOffset = 3 * day
)

// window returns the start and the end of the window that holds now.
func (c Calendar) window(now fsm.Time, length fsm.Millis) (start, end fsm.Time) {
	switch c {
	case Minute, Hour, Day:
		return aligned(now, c.Window(), 0)
	case Week:
		return aligned(now, week, mondayOffset)
	case Month:
		year, month := civil(floorDiv(int64(now), day))
		return monthStart(year, month), monthStart(year, month+1)
	case Year:
		year, _ := civil(floorDiv(int64(now), day))
		return monthStart(year, 1), monthStart(year+1, 1)
	default:
		return aligned(now, length, 0)
	}
}

func aligned(now fsm.Time, length, offset fsm.Millis) (start, end fsm.Time) {
	start = fsm.Time(floorDiv(int64(now)+offset, length)*length - offset)
	return start, start + fsm.Time(length)
}

func floorDiv(a, b int64) int64 {
	q := a / b
	if a%b < 0 {
		q--
	}
	return q
}

// The two conversions between days and dates count years from March, so that the leap day is the last day of a year;
// after Howard Hinnant, "chrono-Compatible Low-Level Date Algorithms".

const (
	daysPerEra  = 146_097 // 400 years
	epochOffset = 719_468 // days from 0000-03-01 to 1970-01-01
)

// civil returns the year and month (1 to 12) of a day counted from the epoch.
func civil(days int64) (year, month int64) {
	days += epochOffset
	era := floorDiv(days, daysPerEra)
	dayOfEra := days - era*daysPerEra
	yearOfEra := (dayOfEra - dayOfEra/1460 + dayOfEra/36_524 - dayOfEra/146_096) / 365
	dayOfYear := dayOfEra - (365*yearOfEra + yearOfEra/4 - yearOfEra/100)
	fromMarch := (5*dayOfYear + 2) / 153
	year, month = yearOfEra+era*400, fromMarch+3
	if month > 12 {
		year, month = year+1, month-12
	}
	return year, month
}

// monthStart returns the first moment of a month; month 13 is January of the next year.
func monthStart(year, month int64) fsm.Time {
	if month > 12 {
		year, month = year+1, month-12
	}
	if month <= 2 {
		year--
		month += 12
	}
	era := floorDiv(year, 400)
	yearOfEra := year - era*400
	dayOfYear := (153*(month-3) + 2) / 5
	dayOfEra := yearOfEra*365 + yearOfEra/4 - yearOfEra/100 + dayOfYear
	return fsm.Time((era*daysPerEra + dayOfEra - epochOffset) * day)
}
