//! CRI log records: where a line is cut, its tag, and its timestamp. Pure.
//!
//! `<timestamp> <stream> <tag> <content>
//! `; the tag is `F` if the content ends with the line (the LF, and one CR before it, are not content) and `P` if the
//! line continues.

use std::time::{SystemTime, UNIX_EPOCH};

/// Whether a record ends its line.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Tag {
    Partial,
    Full,
}

/// One record's content, without time and stream.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Record<'a> {
    pub(crate) tag: Tag,
    /// The content, and the LF behind it when that is adjacent in memory.
    pub(crate) bytes: &'a [u8],
    /// Whether `bytes` ends with the record's LF.
    pub(crate) terminated: bool,
}

/// What is known about the bytes to follow.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Pause {
    /// More may follow at once: keep an unterminated tail.
    None,
    /// Silence: write the tail, so that a prompt is seen. Keep a trailing CR, since an LF may follow.
    Idle,
    /// Nothing ever: let all out.
    End,
}

/// Cuts bytes into records; [`Records::rest`] is what must be kept for later: at most `max + 1` bytes.
#[derive(Debug)]
pub(crate) struct Records<'a> {
    rest: &'a [u8],
    max: usize,
    pause: Pause,
}

impl<'a> Records<'a> {
    pub(crate) fn new(data: &'a [u8], max: usize, pause: Pause) -> Self {
        Self { rest: data, max: max.max(1), pause }
    }

    pub(crate) fn rest(&self) -> &'a [u8] {
        self.rest
    }

    fn take(&mut self, content: usize, skip: usize, tag: Tag) -> Option<Record<'a>> {
        let terminated = tag == Tag::Full && skip == 1;
        let (bytes, _) = self.rest.split_at(if terminated { content + 1 } else { content });
        self.rest = &self.rest[content + skip..];
        Some(Record { tag, bytes, terminated })
    }
}

impl<'a> Iterator for Records<'a> {
    type Item = Record<'a>;

    fn next(&mut self) -> Option<Record<'a>> {
        if let Some(end) = memchr::memchr(b'\n', self.rest) {
            let content = if end > 0 && self.rest[end - 1] == b'\r' { end - 1 } else { end };
            if content > self.max {
                return self.take(self.max, 0, Tag::Partial);
            }
            return self.take(content, end + 1 - content, Tag::Full);
        }
        let length = self.rest.len();
        // Whether a last CR is content depends on the next byte.
        let sure = if self.rest.last() == Some(&b'\r') { length - 1 } else { length };
        if sure > self.max {
            return self.take(self.max, 0, Tag::Partial);
        }
        let out = match self.pause {
            Pause::None => 0,
            Pause::Idle => sure,
            Pause::End => length.min(self.max),
        };
        if out == 0 { None } else { self.take(out, 0, Tag::Partial) }
    }
}

/// A point in time as log records show it: UTC, nine digits.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Stamp {
    seconds: i64,
    nanos: u32,
}

impl Stamp {
    pub(crate) fn now() -> Self {
        match SystemTime::now().duration_since(UNIX_EPOCH) {
            Ok(since) => Self {
                seconds: i64::try_from(since.as_secs()).unwrap_or(i64::MAX),
                nanos: since.subsec_nanos(),
            },
            // A clock before 1970 is a dead battery; show the epoch.
            Err(_) => Self { seconds: 0, nanos: 0 },
        }
    }

    pub(crate) fn nanoseconds(self) -> i64 {
        self.seconds.saturating_mul(1_000_000_000).saturating_add(i64::from(self.nanos))
    }

    /// `2026-11-24T11:39:21.000000001Z`
    pub(crate) fn text(self) -> String {
        let (days, second) = (self.seconds.div_euclid(86_400), self.seconds.rem_euclid(86_400));
        let (year, month, day) = civil(days);
        let (hour, minute, second) = (second / 3600, second / 60 % 60, second % 60);
        let nanos = self.nanos;
        format!("{year:04}-{month:02}-{day:02}T{hour:02}:{minute:02}:{second:02}.{nanos:09}Z")
    }
}

/// Days since 1970-01-01 to a date of the Gregorian calendar. Years are counted from March, so that the leap day is
/// the last of its year, and in eras of 400 years (146 097 days), which all are alike.
fn civil(days: i64) -> (i64, i64, i64) {
    let days = days + 719_468;
    let (era, day_of_era) = (days.div_euclid(146_097), days.rem_euclid(146_097));
    let year_of_era = (day_of_era - day_of_era / 1460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let march_month = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * march_month + 2) / 5 + 1;
    let month = if march_month < 10 { march_month + 3 } else { march_month - 9 };
    (era * 400 + year_of_era + i64::from(month <= 2), month, day)
}

#[cfg(test)]
mod tests {
    use super::*;

    const MAX: usize = 16_384;

    /// Feeds `data` in pieces of `step` bytes, as the monitor does, and returns (tag, content) of all records.
    fn feed(data: &[u8], step: usize, max: usize) -> Vec<(Tag, Vec<u8>)> {
        let (mut out, mut tail) = (Vec::new(), Vec::new());
        let mut run = |tail: &mut Vec<u8>, pause| {
            let held = std::mem::take(tail);
            let mut records = Records::new(&held, max, pause);
            for record in records.by_ref() {
                let mut content = record.bytes.to_vec();
                if record.terminated {
                    assert_eq!(content.pop(), Some(b'\n'));
                }
                out.push((record.tag, content));
            }
            assert!(records.rest().len() <= max + 1);
            *tail = records.rest().to_vec();
        };
        for piece in data.chunks(step) {
            tail.extend_from_slice(piece);
            run(&mut tail, Pause::None);
        }
        run(&mut tail, Pause::End);
        assert!(tail.is_empty());
        out
    }

    /// What a reader of the log reproduces.
    fn joined(records: &[(Tag, Vec<u8>)]) -> Vec<u8> {
        let mut out = Vec::new();
        for (tag, content) in records {
            out.extend_from_slice(content);
            if *tag == Tag::Full {
                out.push(b'\n');
            }
        }
        out
    }

    #[test]
    fn long_lines_are_cut_at_the_limit_exactly_and_join_again() {
        for (length, lf, sizes) in [
            (MAX, true, &[MAX][..]),
            (MAX, false, &[MAX]),
            (MAX + 1, true, &[MAX, 1]),
            (MAX + 1, false, &[MAX, 1]),
            (2 * MAX, true, &[MAX, MAX]),
            (2 * MAX, false, &[MAX, MAX]),
        ] {
            let mut data: Vec<u8> = (0..length).map(|at| b'a' + u8::try_from(at % 23).unwrap()).collect();
            if lf {
                data.push(b'\n');
            }
            for step in [1, 4096, 8191, 65_536] {
                let records = feed(&data, step, MAX);
                let lengths: Vec<usize> = records.iter().map(|(_, content)| content.len()).collect();
                assert_eq!(lengths, sizes, "{length} {lf} {step}");
                let last = if lf { Tag::Full } else { Tag::Partial };
                assert_eq!(records.last().unwrap().0, last);
                assert!(records[..records.len() - 1].iter().all(|(tag, _)| *tag == Tag::Partial));
                assert_eq!(joined(&records), data);
            }
        }
    }

    #[test]
    fn cuts_do_not_depend_on_how_the_bytes_arrive() {
        let texts: [&[u8]; 12] = [
            b"\n\n",
            b"a\r\nb\r\n",
            b"\r",
            b"\r\r\n",
            b"\r\n",
            b"abcd\r\n",
            b"abcd\r",
            b"abcde\r\nx",
            b"abcd\rx\n",
            b"\0\xff\xfe\n\xc3",
            b"12345678\n",
            b"123456789\r\n",
        ];
        for text in texts {
            let whole = feed(text, 1000, 4);
            for step in 1..5 {
                assert_eq!(feed(text, step, 4), whole, "{text:?} {step}");
            }
        }
        let full = |content: &[u8]| (Tag::Full, content.to_vec());
        let part = |content: &[u8]| (Tag::Partial, content.to_vec());
        assert_eq!(feed(b"\n\n", 1, 4), [full(b""), full(b"")]);
        assert_eq!(feed(b"a\r\nb\r\n", 1, 4), [full(b"a"), full(b"b")]);
        assert_eq!(feed(b"\r\r\n", 1, 4), [full(b"\r")]);
        assert_eq!(feed(b"abcd\r\n", 1, 4), [full(b"abcd")]);
        assert_eq!(feed(b"abcd\r", 1, 4), [part(b"abcd"), part(b"\r")]);
        assert_eq!(feed(b"\0\xff\xfe\n\xc3", 1, 4), [full(b"\0\xff\xfe"), part(b"\xc3")]);
    }

    #[test]
    fn a_prompt_is_let_out_but_a_carriage_return_waits() {
        let mut records = Records::new(b"one\nname?\r", 100, Pause::Idle);
        let contents: Vec<(Tag, &[u8])> = records.by_ref().map(|record| (record.tag, record.bytes)).collect();
        assert_eq!(contents, [(Tag::Full, &b"one\n"[..]), (Tag::Partial, b"name?")]);
        assert_eq!(records.rest(), b"\r");
        let mut records = Records::new(b"\r\n", 100, Pause::None);
        assert_eq!(records.next(), Some(Record { tag: Tag::Full, bytes: b"", terminated: false }));
    }

    #[test]
    fn stamps() {
        let text = |seconds, nanos| Stamp { seconds, nanos }.text();
        assert_eq!(text(0, 0), "1970-01-01T00:00:00.000000000Z");
        assert_eq!(text(951_782_400, 1), "2000-02-29T00:00:00.000000001Z");
        assert_eq!(text(1_795_520_361, 120_000_000), "2026-11-24T11:39:21.120000000Z");
        assert_eq!(text(4_107_542_399, 999_999_999), "2100-02-28T23:59:59.999999999Z");
        assert_eq!(text(4_107_542_400, 0), "2100-03-01T00:00:00.000000000Z");
        assert_eq!(text(-1, 5), "1969-12-31T23:59:59.000000005Z");
    }
}
