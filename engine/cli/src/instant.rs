//! Instants as text: UTC, to the microsecond.

use std::fmt;
use std::str::FromStr;

const DAY_S: u64 = 86_400;

/// Nanoseconds since 1970.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Instant(pub u64);

/// Days since 1970 of a day of the Gregorian calendar.
fn days(year: u64, month: u64, day: u64) -> u64 {
    // Years begin in March, so that the leap day is the last.
    let (year, month) = if month > 2 { (year, month - 3) } else { (year - 1, month + 9) };
    let leaps = year / 4 - year / 100 + year / 400;
    // March to the month before, as 153 days for each five months.
    365 * year + leaps + (153 * month + 2) / 5 + day - 1 - 719_468
}

impl fmt::Display for Instant {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (seconds, micros) = (self.0 / 1_000_000_000, self.0 / 1_000 % 1_000_000);
        let (day, second) = (seconds / DAY_S, seconds % DAY_S);
        let mut year = 1970 + day / 366;
        while days(year + 1, 1, 1) <= day {
            year += 1;
        }
        let month = (2..=12).take_while(|month| days(year, *month, 1) <= day).last().unwrap_or(1);
        let date = day - days(year, month, 1) + 1;
        let (hour, minute, second) = (second / 3600, second / 60 % 60, second % 60);
        write!(f, "{year:04}-{month:02}-{date:02}T{hour:02}:{minute:02}:{second:02}.{micros:06}Z")
    }
}

impl FromStr for Instant {
    type Err = String;

    /// `2026-03-01T04:05:06Z`, with any part of a second, as [`fmt::Display`] writes it.
    fn from_str(text: &str) -> Result<Instant, String> {
        parse(text).ok_or_else(|| "write an instant as zea replay prints it: 2026-03-01T04:05:06.789Z".to_owned())
    }
}

fn parse(text: &str) -> Option<Instant> {
    let (date, time) = text.trim_end_matches('Z').split_once('T')?;
    let (time, fraction) = time.split_once('.').unwrap_or((time, "0"));
    let [year, month, day] = numbers(date, '-')?;
    let [hour, minute, second] = numbers(time, ':')?;
    let in_range = (1970..2500).contains(&year)
        && (1..=12).contains(&month)
        && (1..=31).contains(&day)
        && hour < 24
        && minute < 60
        && second < 60;
    let digits = (1..=9).contains(&fraction.len()) && fraction.bytes().all(|b| b.is_ascii_digit());
    if !in_range || !digits {
        return None;
    }
    let seconds = days(year, month, day) * DAY_S + hour * 3600 + minute * 60 + second;
    let nanos: u64 = format!("{fraction:0<9}").parse().ok()?;
    Some(Instant(seconds * 1_000_000_000 + nanos))
}

fn numbers(text: &str, between: char) -> Option<[u64; 3]> {
    let parts: Option<Vec<u64>> = text.split(between).map(|part| part.parse().ok()).collect();
    parts?.try_into().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cli_instants_are_written_and_read() {
        for (seconds, text) in [
            (0, "1970-01-01T00:00:00.000000Z"),
            (951_782_400, "2000-02-29T00:00:00.000000Z"),
            (1_772_337_906, "2026-03-01T04:05:06.000000Z"),
            (4_107_542_399, "2100-02-28T23:59:59.000000Z"),
            (4_107_542_400, "2100-03-01T00:00:00.000000Z"),
        ] {
            assert_eq!(Instant(seconds * 1_000_000_000).to_string(), text);
            assert_eq!(text.parse(), Ok(Instant(seconds * 1_000_000_000)), "{text}");
        }
        assert_eq!("2000-01-01T00:00:00.25".parse(), Ok(Instant(946_684_800_250_000_000)));
        for day in 0..40_000 {
            let instant = Instant(day * DAY_S * 1_000_000_000 + 1_000);
            assert_eq!(instant.to_string().parse(), Ok(instant));
        }
        for wrong in ["", "now", "2026-13-01T00:00:00", "2026-01-01", "2026-01-01T24:00:00", "2026-01-01T00:00:00.x"] {
            assert!(wrong.parse::<Instant>().is_err(), "{wrong}");
        }
    }
}
