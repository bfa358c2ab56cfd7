//! What is kept of JSON that others have written: names and texts, never values of unknown shape, whose tree takes a hundred
//! times the bytes that it was read from.

use serde::de::{IgnoredAny, MapAccess, Visitor};
use serde::{Deserialize, Deserializer, Serialize as _, Serializer};
use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

/// Annotations of one descriptor or manifest that are read; more is an error. Tools that build images write some dozen.
pub(crate) const MAX_ANNOTATIONS: usize = 256;

/// What is wrong with a document, without words of the document: it may have come from where only this node can read, and the
/// error goes to whoever named the image.
pub(super) fn fault(error: &serde_json::Error) -> String {
    let text = error.to_string();
    if !error.is_data() {
        return text;
    }
    // Names of fields and kinds of values are ours; so are limits.
    let ours = ["missing field", "duplicate field", "more than"].iter().any(|known| text.starts_with(known));
    // The end of `DigestError`.
    const NO_DIGEST: &str = " is not sha256:";
    match text.rfind(", expected ") {
        _ if ours => text,
        None if text.starts_with("digest ") && text.contains(NO_DIGEST) => {
            format!("a digest{}", &text[text.rfind(NO_DIGEST).unwrap_or_default()..])
        }
        Some(at) => format!("a value of another kind{}", &text[at..]),
        None => format!("a value that does not fit at line {} column {}", error.line(), error.column()),
    }
}

/// A name from a document, as it may be told: short, and only characters that such names have.
pub(super) fn name(text: &str) -> String {
    const SHOWN: usize = 80;
    let plain =
        |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '_' | '-' | '+' | '/' | ':' | ';' | '=');
    let mut shown: String = text.chars().take(SHOWN).map(|c| if plain(c) { c } else { '?' }).collect();
    if text.chars().count() > SHOWN {
        shown.push('…');
    }
    shown
}

/// The keys of an object, whatever its values are. In the binary form, which is ours, there are no values.
pub(super) fn keys<'de, D: Deserializer<'de>>(deserializer: D) -> Result<BTreeSet<String>, D::Error> {
    struct Keys;
    impl<'de> Visitor<'de> for Keys {
        type Value = BTreeSet<String>;

        fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            f.write_str("an object")
        }

        fn visit_unit<E>(self) -> Result<Self::Value, E> {
            Ok(BTreeSet::new())
        }

        fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
            let mut keys = BTreeSet::new();
            while let Some((key, IgnoredAny)) = map.next_entry()? {
                keys.insert(key);
            }
            Ok(keys)
        }
    }
    if !deserializer.is_human_readable() {
        return BTreeSet::deserialize(deserializer);
    }
    deserializer.deserialize_any(Keys)
}

/// Writes what [`keys`] reads: the keys of empty objects.
pub(super) fn write_keys<S: Serializer>(keys: &BTreeSet<String>, serializer: S) -> Result<S::Ok, S::Error> {
    if !serializer.is_human_readable() {
        return keys.serialize(serializer);
    }
    serializer.collect_map(keys.iter().map(|key| (key, BTreeMap::<(), ()>::new())))
}

/// An object of texts with at most [`MAX_ANNOTATIONS`] entries; null is empty, and what is no text is left out, since
/// nobody here reads it.
pub(super) fn annotations<'de, D: Deserializer<'de>>(
    deserializer: D,
) -> Result<BTreeMap<String, String>, D::Error> {
    struct Annotations;
    impl<'de> Visitor<'de> for Annotations {
        type Value = BTreeMap<String, String>;

        fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            f.write_str("an object of annotations")
        }

        fn visit_unit<E>(self) -> Result<Self::Value, E> {
            Ok(BTreeMap::new())
        }

        fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
            let mut found = BTreeMap::new();
            while let Some((key, text)) = map.next_entry::<String, Text>()? {
                if let Text(Some(text)) = text {
                    found.insert(key, text);
                }
                if found.len() > MAX_ANNOTATIONS {
                    return Err(too_many());
                }
            }
            Ok(found)
        }
    }
    if !deserializer.is_human_readable() {
        let found = BTreeMap::deserialize(deserializer)?;
        return if found.len() > MAX_ANNOTATIONS { Err(too_many()) } else { Ok(found) };
    }
    deserializer.deserialize_any(Annotations)
}

fn too_many<E: serde::de::Error>() -> E {
    E::custom(format!("more than {MAX_ANNOTATIONS} annotations"))
}

/// A string; None of anything else, which is passed over without a copy.
struct Text(Option<String>);

impl<'de> Deserialize<'de> for Text {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Any;
        impl<'de> Visitor<'de> for Any {
            type Value = Text;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("anything")
            }

            fn visit_str<E>(self, text: &str) -> Result<Text, E> {
                Ok(Text(Some(text.to_owned())))
            }

            fn visit_bool<E>(self, _: bool) -> Result<Text, E> {
                Ok(Text(None))
            }

            fn visit_i64<E>(self, _: i64) -> Result<Text, E> {
                Ok(Text(None))
            }

            fn visit_u64<E>(self, _: u64) -> Result<Text, E> {
                Ok(Text(None))
            }

            fn visit_f64<E>(self, _: f64) -> Result<Text, E> {
                Ok(Text(None))
            }

            fn visit_unit<E>(self) -> Result<Text, E> {
                Ok(Text(None))
            }

            fn visit_seq<A: serde::de::SeqAccess<'de>>(self, mut seq: A) -> Result<Text, A::Error> {
                while seq.next_element::<IgnoredAny>()?.is_some() {}
                Ok(Text(None))
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Text, A::Error> {
                while map.next_entry::<IgnoredAny, IgnoredAny>()?.is_some() {}
                Ok(Text(None))
            }
        }
        deserializer.deserialize_any(Any)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug, Deserialize)]
    struct Of {
        #[serde(default, deserialize_with = "keys")]
        keys: BTreeSet<String>,
        #[serde(default, deserialize_with = "annotations")]
        annotations: BTreeMap<String, String>,
    }

    #[test]
    fn values_of_any_shape_leave_nothing() {
        let deep = format!("{}1{}", "[".repeat(100), "]".repeat(100));
        let text = format!(
            r#"{{"keys":{{"/a":{deep},"/b":{{"x":{deep}}}}},"annotations":{{"a":"b","c":{deep},"d":{{}},"e":null,"f":1.5}}}}"#
        );
        let of: Of = serde_json::from_str(&text).unwrap();
        assert_eq!(of.keys.iter().map(String::as_str).collect::<Vec<_>>(), ["/a", "/b"]);
        assert_eq!(of.annotations, BTreeMap::from([("a".to_owned(), "b".to_owned())]));
        let of: Of = serde_json::from_str(r#"{"keys":null,"annotations":null}"#).unwrap();
        assert!(of.keys.is_empty() && of.annotations.is_empty());
    }

    #[test]
    fn an_error_has_no_words_of_the_document() {
        for text in [
            r#"{"annotations":"SECRET"}"#,
            r#"{"annotations":{"a":"b"},"annotations":{"SECRET":1}}"#,
            r#"{"keys":["SECRET"]}"#,
            r#"{"keys":"SECRET, expected SECRET"}"#,
            r#""SECRET""#,
            r#"{"SECRET"#,
        ] {
            let told = fault(&serde_json::from_str::<Of>(text).unwrap_err());
            assert!(!told.contains("SECRET") && told.len() < 200, "{told}");
        }
        assert_eq!(
            name("application/vnd.oci.image.layer.v1.tar+gzip"),
            "application/vnd.oci.image.layer.v1.tar+gzip"
        );
        assert_eq!(name("a\u{1b}[2J\n\u{202e}"), "a??2J??");
        assert_eq!(name(&"x".repeat(4000)).chars().count(), 81);
    }

    #[test]
    fn annotations_are_limited_in_number() {
        let of = |n: usize| {
            let all: Vec<_> = (0..n).map(|n| format!(r#""{n}":"""#)).collect();
            serde_json::from_str::<Of>(&format!(r#"{{"annotations":{{{}}}}}"#, all.join(",")))
        };
        of(MAX_ANNOTATIONS).unwrap();
        let error = of(MAX_ANNOTATIONS + 1).unwrap_err().to_string();
        assert!(error.contains("more than 256 annotations"), "{error}");
    }
}
