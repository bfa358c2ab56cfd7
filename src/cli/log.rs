//! A log in which an event is a line, whatever others have put into an error's words: they can forge no other event, nor move
//! a terminal's cursor. Never decides what is logged.

use std::borrow::Cow;
use std::io::{self, Write};

/// Where a subscriber writes its events, and how a character is written that would do more than show itself.
#[derive(Debug)]
pub struct OneLine<W>(pub W, pub fn(&str) -> Cow<'_, str>);

impl<W: Write> Write for OneLine<W> {
    /// One whole event, as the subscriber writes it.
    fn write(&mut self, event: &[u8]) -> io::Result<usize> {
        let text = String::from_utf8_lossy(event);
        let text = text.strip_suffix('\n').unwrap_or(&text);
        match (self.1)(text) {
            // Whole at once, so that events of two threads do not mix.
            Cow::Borrowed(same) if same.len() + 1 == event.len() => self.0.write_all(event)?,
            plain => self.0.write_all(format!("{plain}\n").as_bytes())?,
        }
        Ok(event.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        self.0.flush()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::plain;
    use std::sync::{Arc, Mutex};

    #[derive(Clone, Default)]
    struct Log(Arc<Mutex<Vec<u8>>>);

    impl Write for Log {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0.lock().unwrap().write(bytes)
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn an_event_is_one_line_whatever_others_have_put_into_it() {
        let hostile =
            "refused\n2026-12-01T00:00:00Z  INFO podwright: forged\r\x1b[2J\u{9b}H\u{202e}\u{2028}end";
        for json in [false, true] {
            let log = Log::default();
            let writer = log.clone();
            let logs = tracing_subscriber::fmt().with_ansi(false);
            let tell =
                || tracing::warn!(error = %hostile, debug = ?hostile, text = hostile, "it says {hostile}");
            if json {
                let logs = logs.with_writer(move || OneLine(writer.clone(), plain::json)).json();
                tracing::subscriber::with_default(logs.finish(), tell);
            } else {
                let logs = logs.with_writer(move || OneLine(writer.clone(), plain::one_line));
                tracing::subscriber::with_default(logs.finish(), tell);
            }
            let text = String::from_utf8(log.0.lock().unwrap().clone()).unwrap();
            let line = text.strip_suffix('\n').unwrap();
            assert!(line.contains("refused") && line.chars().all(plain::is_plain), "{line:?}");
            if json {
                let event: serde_json::Value = serde_json::from_str(line).unwrap();
                assert_eq!(event["fields"]["error"], hostile);
            }
        }
    }
}
