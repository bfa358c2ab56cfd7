//! `WWW-Authenticate`: RFC 9110 challenges, several in one header or in many. Pure.

/// One challenge.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Challenge {
    /// Lower case.
    pub(super) scheme: String,
    /// Keys in lower case.
    pub(super) parameters: Vec<(String, String)>,
}

/// Challenges in one answer; more are ignored.
const MAX_CHALLENGES: usize = 16;

impl Challenge {
    /// A parameter's value.
    pub(super) fn get(&self, key: &str) -> Option<&str> {
        self.parameters.iter().find(|(k, _)| k == key).map(|(_, v)| v.as_str())
    }
}

/// Parses header values; what cannot be understood is skipped.
pub(super) fn parse<'a>(headers: impl Iterator<Item = &'a str>) -> Vec<Challenge> {
    let mut found: Vec<Challenge> = Vec::new();
    for header in headers {
        let mut rest = header;
        let mut fresh = true;
        loop {
            rest = rest.trim_start_matches([' ', '\t', ',']);
            let end = rest.find([' ', '\t', ',', '=']).unwrap_or(rest.len());
            if end == 0 || found.len() >= MAX_CHALLENGES {
                break;
            }
            let word = &rest[..end];
            let after = rest[end..].trim_start_matches([' ', '\t']);
            // `key=value` belongs to the preceding challenge; a single word starts one.
            match after.strip_prefix('=') {
                Some(text) if !fresh => {
                    let (value, left) = value(text.trim_start_matches([' ', '\t']));
                    if let Some(challenge) = found.last_mut() {
                        challenge.parameters.push((word.to_ascii_lowercase(), value));
                    }
                    rest = left;
                }
                Some(_) => break,
                None => {
                    found.push(Challenge { scheme: word.to_ascii_lowercase(), parameters: Vec::new() });
                    fresh = false;
                    rest = after;
                }
            }
        }
    }
    found
}

fn value(text: &str) -> (String, &str) {
    let Some(quoted) = text.strip_prefix('"') else {
        let end = text.find([' ', '\t', ',']).unwrap_or(text.len());
        return (text[..end].to_owned(), &text[end..]);
    };
    let mut value = String::new();
    let mut chars = quoted.char_indices();
    while let Some((at, c)) = chars.next() {
        match c {
            '"' => return (value, &quoted[at + 1..]),
            '\\' => value.extend(chars.next().map(|(_, escaped)| escaped)),
            c => value.push(c),
        }
    }
    (value, "")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn challenges_of_every_shape() {
        let found = parse(
            [
                r#"Bearer realm="https://a/token",service="a, b",scope="repository:x:pull,push repository:y:pull""#,
                r#"bAsIc realm="q\"uote", Negotiate"#,
                "",
                "=,=,",
            ]
            .into_iter(),
        );
        assert_eq!(found.len(), 3);
        assert_eq!(found[0].scheme, "bearer");
        assert_eq!(found[0].get("service"), Some("a, b"));
        assert_eq!(found[0].get("scope"), Some("repository:x:pull,push repository:y:pull"));
        assert_eq!((found[1].scheme.as_str(), found[1].get("realm")), ("basic", Some("q\"uote")));
        assert_eq!(found[2].scheme, "negotiate");
    }

    #[test]
    fn hostile_headers_end() {
        let long = "Bearer ".to_owned() + &"a=\"".repeat(10_000);
        assert!(parse([long.as_str(), "Bearer realm=\"unterminated", "Bearer realm"].into_iter()).len() <= 4);
    }
}
