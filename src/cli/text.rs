//! Numbers, ids and tables in readable form. Pure.

use crate::model::plain;

/// Hex digits by which an image or layer is known on sight; docker and crictl show about as many.
const SHORT: usize = 12;

/// Decimal units, as disks and registries are sold.
const UNITS: [&str; 6] = ["B", "kB", "MB", "GB", "TB", "PB"];

/// `12.3 MB`.
pub(super) fn bytes(bytes: u64) -> String {
    let (mut whole, mut tenths, mut unit) = (bytes, 0, 0);
    // A value that would round to 1000.0 takes the next unit.
    while (whole >= 1000 || (whole == 999 && tenths > 9)) && unit + 1 < UNITS.len() {
        tenths = (whole % 1000) / 100;
        whole /= 1000;
        unit += 1;
    }
    let name = UNITS.get(unit).copied().unwrap_or_default();
    if unit == 0 { format!("{whole} {name}") } else { format!("{whole}.{tenths} {name}") }
}

/// The first digits of `sha256:…`.
pub(super) fn short(digest: &str) -> &str {
    let hex = digest.rsplit(':').next().unwrap_or(digest);
    hex.get(..SHORT).unwrap_or(hex)
}

/// `1 layer`, `2 layers`.
pub(super) fn count(number: usize, what: &str) -> String {
    if number == 1 { format!("1 {what}") } else { format!("{number} {what}s") }
}

/// A duration in its two greatest units: `350 ms`, `4.2 s`, `1m1s`, `3h0m`, `2d4h`.
pub(super) fn age(milliseconds: u64) -> String {
    let seconds = milliseconds / 1000;
    let (minutes, hours, days) = (seconds / 60, seconds / 3600, seconds / 86_400);
    match (milliseconds, minutes, hours, days) {
        (0..1000, ..) => format!("{milliseconds} ms"),
        (_, 0, ..) => format!("{seconds}.{} s", milliseconds % 1000 / 100),
        (_, _, 0, _) => format!("{minutes}m{}s", seconds % 60),
        (_, _, _, 0) => format!("{hours}h{}m", minutes % 60),
        _ => format!("{days}d{}h", hours % 24),
    }
}

/// An RFC 3339 time to the minute; any other text of an image is not shown.
pub(super) fn minute(time: &str) -> String {
    let shape: String = time.chars().take(16).map(|c| if c.is_ascii_digit() { '0' } else { c }).collect();
    if shape == "0000-00-00T00:00" { time[..16].replace('T', " ") } else { "-".to_owned() }
}

/// Columns side by side, each as wide as its widest cell; those in `right` are set to the right. No cell makes a line.
pub(super) fn table(head: &[&str], right: &[usize], rows: &[Vec<String>]) -> String {
    let marked = |row: &Vec<String>| row.iter().map(|cell| plain::marked(cell).into_owned()).collect();
    let rows: Vec<Vec<String>> = rows.iter().map(marked).collect();
    let head: Vec<String> = head.iter().map(|cell| (*cell).to_owned()).collect();
    let all: Vec<&Vec<String>> = std::iter::once(&head).chain(&rows).collect();
    let width = |column: usize| {
        all.iter().filter_map(|row| row.get(column)).map(|cell| cell.chars().count()).max().unwrap_or(0)
    };
    let widths: Vec<usize> = (0..head.len()).map(width).collect();
    let line = |row: &&Vec<String>| {
        let cells = row.iter().zip(&widths).enumerate().map(|(column, (cell, width))| {
            if right.contains(&column) { format!("{cell:>width$}") } else { format!("{cell:<width$}") }
        });
        cells.collect::<Vec<_>>().join("  ").trim_end().to_owned()
    };
    all.iter().map(line).collect::<Vec<_>>().join("\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes() {
        for (number, text) in [
            (0, "0 B"),
            (999, "999 B"),
            (1000, "1.0 kB"),
            (1_250_000, "1.2 MB"),
            (999_999_999, "999.9 MB"),
            (u64::MAX, "18446.7 PB"),
        ] {
            assert_eq!(bytes(number), text);
        }
    }

    #[test]
    fn ages() {
        for (milliseconds, text) in [
            (0, "0 ms"),
            (999, "999 ms"),
            (4_250, "4.2 s"),
            (61_000, "1m1s"),
            (3 * 3_600_000, "3h0m"),
            (52 * 3_600_000, "2d4h"),
        ] {
            assert_eq!(age(milliseconds), text);
        }
    }

    #[test]
    fn short_ids_and_times() {
        assert_eq!(short("sha256:0123456789abcdef"), "0123456789ab");
        assert_eq!(short("odd"), "odd");
        assert_eq!(minute("2026-01-02T03:04:05.678Z"), "2026-01-02 03:04");
        for odd in ["", "yesterday", "\x1b[2J-01-02T03:04", "２０２６-01-02T03:04"] {
            assert_eq!(minute(odd), "-", "{odd}");
        }
    }

    #[test]
    fn columns_line_up() {
        let rows = [vec!["a".to_owned(), "1 B".to_owned(), "x".to_owned()]];
        assert_eq!(table(&["NAME", "SIZE", "BY"], &[1], &rows), "NAME  SIZE  BY\na      1 B  x");
        let hostile = [vec!["a\nb\x1b[2J".to_owned(), "1 B".to_owned(), String::new()]];
        let shown = table(&["NAME", "SIZE", "BY"], &[1], &hostile);
        assert_eq!(shown.lines().nth(1).unwrap(), "a\u{fffd}b\u{fffd}[2J   1 B", "{shown}");
        assert_eq!(count(1, "layer"), "1 layer");
        assert_eq!(count(0, "layer"), "0 layers");
    }
}
