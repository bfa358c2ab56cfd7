//! podwright's own policy file, TOML.

use super::identity::{Identity, Name, Strictness, check_prefix};
use super::{Policy, Requirement, Rule, key_file};
use crate::images::error::ImageError;
use serde::Deserialize;
use std::collections::{BTreeMap, HashMap};
use std::path::{Path, PathBuf};

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct File {
    default: Section,
    #[serde(default)]
    scope: BTreeMap<String, Section>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Section {
    action: Action,
    #[serde(default)]
    keys: Vec<PathBuf>,
    signed_as: Option<String>,
}

#[derive(Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
enum Action {
    Accept,
    Reject,
    Warn,
    Require,
}

pub(super) fn parse(path: &Path, text: &str) -> Result<Policy, ImageError> {
    let wrong = |reason: String| ImageError::Policy { path: path.to_owned(), reason };
    let file: File = toml::from_str(text).map_err(|e| {
        // In one line, for an event of a pod; the error's own form draws a picture.
        let line =
            e.span().and_then(|span| text.get(..span.start)).map_or(1, |t| t.matches('\n').count() + 1);
        wrong(format!("line {line}: {}", e.message()))
    })?;
    let default = rule(path, "default", None, file.default)?;
    let mut scopes = HashMap::new();
    for (scope, section) in file.scope {
        check_prefix(&scope).map_err(|reason| wrong(format!("scope {scope:?}: {reason}")))?;
        let rule = rule(path, &format!("scope {scope:?}"), Some(&scope), section)?;
        scopes.insert(scope, rule);
    }
    Ok(Policy { default, scopes })
}

fn rule(path: &Path, place: &str, scope: Option<&str>, section: Section) -> Result<Rule, ImageError> {
    let wrong =
        |reason: String| ImageError::Policy { path: path.to_owned(), reason: format!("{place}: {reason}") };
    let requirement = match section.action {
        Action::Accept | Action::Reject if !section.keys.is_empty() || section.signed_as.is_some() => {
            return Err(wrong("keys and signed_as are for the actions \"require\" and \"warn\"".into()));
        }
        Action::Accept => Requirement::Accept,
        Action::Reject => Requirement::Reject,
        Action::Warn | Action::Require if section.keys.is_empty() => {
            return Err(wrong("it has no keys".into()));
        }
        Action::Warn | Action::Require => {
            let keys = section.keys.iter().map(|key| key_file(path, key)).collect::<Result<_, _>>()?;
            let identity = match (section.signed_as, scope) {
                (None, _) => Identity::OWN_REPOSITORY,
                (Some(signed), Some(prefix)) => {
                    check_prefix(&signed)
                        .map_err(|reason| wrong(format!("signed_as {signed:?}: {reason}")))?;
                    let name = Name::Remapped { prefix: prefix.to_owned(), signed };
                    Identity { name, strictness: Strictness::Repository }
                }
                (Some(_), None) => return Err(wrong("signed_as needs a scope to be in place of".into())),
            };
            Requirement::Signed { keys, identity }
        }
    };
    Ok(Rule {
        place: place.to_owned(),
        requirements: vec![requirement],
        warn: section.action == Action::Warn,
    })
}
