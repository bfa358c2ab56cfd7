//! The monitor's own log, on stderr, which is `monitor.log`. Bounded: a recurring fault must not fill /run.

use std::fmt::Display;

use crate::record::Stamp;

/// Enough for a few hundred lines; the first ones name the cause.
const LIMIT_BYTES: usize = 64 * 1024;

#[derive(Debug)]
pub(crate) struct Diary {
    left: usize,
}

impl Diary {
    pub(crate) fn new() -> Self {
        Self { left: LIMIT_BYTES }
    }

    /// Writes one line, unless the limit is reached. Ignores a failing write.
    pub(crate) fn note(&mut self, what: impl Display) {
        let line = format!("{} {what}\n", Stamp::now().text());
        if let Some(left) = self.left.checked_sub(line.len()) {
            self.left = left;
            let _ = rustix::io::write(rustix::stdio::stderr(), line.as_bytes());
        }
    }
}
