//! A log in which an event is a line, whatever others have put into an error's words: they can forge no other event, nor move
//! a terminal's cursor. Never decides what is logged.

use crate::model::plain;
use std::borrow::Cow;
use std::io::{self, Write};

/// Bytes of an event as text. Whoever shapes an error's words would fill the journal with them.
const MAX_EVENT: usize = 16 << 10;

/// Where a subscriber writes its events.
#[derive(Debug)]
pub struct OneLine<W> {
    to: W,
    /// How an event is written.
    written: fn(&str) -> Cow<'_, str>,
}

impl<W> OneLine<W> {
    /// For events as text.
    pub fn text(to: W) -> Self {
        Self { to, written: short }
    }

    /// For events as JSON; a part of a document would be none.
    pub fn json(to: W) -> Self {
        Self { to, written: plain::json }
    }
}

fn short(event: &str) -> Cow<'_, str> {
    match plain::one_line(event) {
        Cow::Borrowed(event) => plain::bounded(event, MAX_EVENT),
        Cow::Owned(event) => Cow::Owned(plain::bounded(&event, MAX_EVENT).into_owned()),
    }
}

impl<W: Write> Write for OneLine<W> {
    /// One whole event, as the subscriber writes it.
    fn write(&mut self, event: &[u8]) -> io::Result<usize> {
        let text = String::from_utf8_lossy(event);
        let text = text.strip_suffix('\n').unwrap_or(&text);
        match (self.written)(text) {
            // Whole at once, so that events of two threads do not mix.
            Cow::Borrowed(same) if same.len() + 1 == event.len() => self.to.write_all(event)?,
            plain => self.to.write_all(format!("{plain}\n").as_bytes())?,
        }
        Ok(event.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        self.to.flush()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
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
                let logs = logs.with_writer(move || OneLine::json(writer.clone())).json();
                tracing::subscriber::with_default(logs.finish(), tell);
            } else {
                let logs = logs.with_writer(move || OneLine::text(writer.clone()));
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

    #[test]
    fn an_event_of_text_is_short_whatever_others_have_put_into_it() {
        let log = Log::default();
        for words in ["x".repeat(1 << 20), "\n".repeat(1 << 20)] {
            log.0.lock().unwrap().clear();
            let mut writer = OneLine::text(log.clone());
            writer.write_all(format!("{words}\n").as_bytes()).unwrap();
            let text = String::from_utf8(log.0.lock().unwrap().clone()).unwrap();
            assert!(text.len() < MAX_EVENT + 8 && text.ends_with("…\n"), "{}", text.len());
        }
    }
}
