//! Text that others shaped (a registry, an image, a container, a client), made fit to be shown: on a terminal, in a line of
//! the log, in the message of an error. Owns which characters are not. Pure.

use std::borrow::Cow;

/// Whether a character only shows itself. Others move the cursor, begin an escape sequence, end a line, or turn the order of
/// what stands beside them.
#[must_use]
pub fn is_plain(c: char) -> bool {
    let turns =
        matches!(c, '\u{61c}' | '\u{200e}' | '\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}');
    let ends_line = matches!(c, '\u{2028}' | '\u{2029}');
    !(c.is_control() || turns || ends_line)
}

/// The text with every other character as Rust writes it: `\n`, `\u{1b}`.
#[must_use]
pub fn one_line(text: &str) -> Cow<'_, str> {
    escaped(text, is_plain, |c, out| out.extend(c.escape_default()))
}

/// The same for text that may have several lines.
#[must_use]
pub fn lines(text: &str) -> Cow<'_, str> {
    escaped(text, |c| is_plain(c) || matches!(c, '\n' | '\t'), |c, out| out.extend(c.escape_default()))
}

/// A JSON document, whose writer escapes only what its grammar wants: the rest as JSON writes it. Such characters are in
/// strings only.
#[must_use]
pub fn json(document: &str) -> Cow<'_, str> {
    escaped(
        document,
        |c| is_plain(c) || c == '\n',
        |c, out| out.push_str(&format!("\\u{:04x}", u32::from(c))),
    )
}

/// The text with a mark in the place of every other character, as wide as it was.
#[must_use]
pub fn marked(text: &str) -> Cow<'_, str> {
    escaped(text, is_plain, |_, out| out.push(char::REPLACEMENT_CHARACTER))
}

/// No more of a text than so many bytes, with a mark where it was cut.
#[must_use]
pub fn bounded(text: &str, most: usize) -> Cow<'_, str> {
    if text.len() <= most {
        return Cow::Borrowed(text);
    }
    Cow::Owned(format!("{}…", &text[..text.floor_char_boundary(most)]))
}

/// No more of a text than so many bytes: its beginning and its end, with a mark where the middle was left out. The end of
/// an error is its cause.
#[must_use]
pub fn ends(text: &str, most: usize) -> Cow<'_, str> {
    if text.len() <= most {
        return Cow::Borrowed(text);
    }
    let end = most / 4;
    let (head, tail) = (text.floor_char_boundary(most - end), text.ceil_char_boundary(text.len() - end));
    Cow::Owned(format!("{}…{}", &text[..head], &text[tail..]))
}

fn escaped(text: &str, may_stay: fn(char) -> bool, write: fn(char, &mut String)) -> Cow<'_, str> {
    let Some(first) = text.find(|c| !may_stay(c)) else { return Cow::Borrowed(text) };
    let (before, rest) = text.split_at(first);
    let mut out = String::with_capacity(text.len() + 16);
    out.push_str(before);
    for c in rest.chars() {
        if may_stay(c) { out.push(c) } else { write(c, &mut out) }
    }
    Cow::Owned(out)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// ESC, C1's CSI, DEL, line ends of three kinds, a turn of the order, NUL.
    const HOSTILE: &str = "a\x1b[2J\u{9b}H\x7fb\nc\rd\u{2028}e\u{202e}f\u{2066}g\0h\ti";

    #[test]
    fn nothing_but_plain_characters_is_left() {
        for shown in [one_line(HOSTILE), marked(HOSTILE)] {
            assert!(shown.chars().all(is_plain), "{shown:?}");
        }
        assert_eq!(one_line("a\x1b[2J\nb\u{9b}"), "a\\u{1b}[2J\\nb\\u{9b}");
        assert_eq!(marked(HOSTILE).chars().count(), HOSTILE.chars().count());
        assert_eq!(lines("a\n\tb\r\x1b"), "a\n\tb\\r\\u{1b}");
        for text in ["", "plain", "größe 日本 🦀 e\u{301} \u{200d}"] {
            assert!(matches!(one_line(text), Cow::Borrowed(same) if same == text), "{text}");
        }
    }

    #[test]
    fn a_text_is_cut_between_characters() {
        assert!(matches!(bounded("größe", 7), Cow::Borrowed("größe")));
        assert_eq!((bounded("größe", 4), bounded("größe", 3)), ("grö…".into(), "gr…".into()));
    }

    #[test]
    fn the_beginning_and_the_end_of_a_long_text_stay() {
        assert!(matches!(ends("container \"abc\" not found", 100), Cow::Borrowed(_)));
        let text = format!("container {:?} not found", "ä".repeat(1 << 20));
        let shown = ends(&text, 100);
        assert!(shown.len() <= 100 + "…".len(), "{shown}");
        assert!(shown.starts_with("container \"ä") && shown.ends_with("ä\" not found"), "{shown}");
    }

    #[test]
    fn json_stays_what_it_says() {
        let value = serde_json::json!({ "a": HOSTILE });
        let shown = format!("{value:#}");
        let shown = json(&shown);
        assert!(shown.chars().all(|c| is_plain(c) || c == '\n'), "{shown:?}");
        assert_eq!(serde_json::from_str::<serde_json::Value>(&shown).unwrap(), value);
    }
}
