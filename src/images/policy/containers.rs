//! The policy file of CRI-O and podman, containers-policy.json(5). Read as strictly as by its own programs; anything
//! unsupported is an error, never ignored.

use super::identity::{Identity, Name, Strictness, check_prefix, check_scope, is_bare};
use super::{Policy, Requirement, Rule, key_file, key_text};
use crate::images::error::ImageError;
use crate::images::reference::Reference;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use serde::de::{IgnoredAny, MapAccess, Visitor};
use serde::{Deserialize, Deserializer};
use std::collections::HashMap;
use std::fmt;
use std::marker::PhantomData;
use std::path::{Path, PathBuf};

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct File {
    default: Vec<Raw>,
    #[serde(default)]
    transports: Transports,
}

/// Images come only from registries: other transports are ignored.
#[derive(Default)]
struct Transports(Unique<Vec<Raw>>);

/// A map that refuses duplicate keys.
struct Unique<V>(HashMap<String, V>);

impl<V> Default for Unique<V> {
    fn default() -> Self {
        Self(HashMap::new())
    }
}

/// Any requirement, with the fields of all types.
#[derive(Default, PartialEq, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase", default)]
struct Raw {
    r#type: String,
    key_path: Option<PathBuf>,
    key_paths: Option<Vec<PathBuf>>,
    key_data: Option<String>,
    key_datas: Option<Vec<String>>,
    signed_identity: Option<RawIdentity>,
    key_type: Option<IgnoredAny>,
    fulcio: Option<IgnoredAny>,
    pki: Option<IgnoredAny>,
    rekor_public_key_path: Option<IgnoredAny>,
    rekor_public_key_paths: Option<IgnoredAny>,
    rekor_public_key_data: Option<IgnoredAny>,
    rekor_public_key_datas: Option<IgnoredAny>,
}

#[derive(PartialEq, Deserialize)]
#[serde(deny_unknown_fields, tag = "type", rename_all = "camelCase", rename_all_fields = "camelCase")]
enum RawIdentity {
    MatchExact,
    MatchRepoDigestOrExact,
    MatchRepository,
    ExactReference { docker_reference: String },
    ExactRepository { docker_repository: String },
    RemapIdentity { prefix: String, signed_prefix: String },
}

pub(super) fn parse(path: &Path, text: &str) -> Result<Policy, ImageError> {
    let wrong = |reason: String| ImageError::Policy { path: path.to_owned(), reason };
    let file: File = serde_json::from_str(text).map_err(|e| wrong(e.to_string()))?;
    let default = rule(path, "default", file.default)?;
    let mut scopes = HashMap::new();
    for (scope, requirements) in file.transports.0.0 {
        let place = format!("transport docker, scope {scope:?}");
        if !scope.is_empty() {
            check_scope(&scope).map_err(|reason| wrong(format!("{place}: {reason}")))?;
        }
        scopes.insert(scope, rule(path, &place, requirements)?);
    }
    let default = scopes.remove("").unwrap_or(default);
    Ok(Policy { default, scopes })
}

fn rule(path: &Path, place: &str, requirements: Vec<Raw>) -> Result<Rule, ImageError> {
    if requirements.is_empty() {
        let reason = format!("{place}: no requirement; insecureAcceptAnything says that there is none");
        return Err(ImageError::Policy { path: path.to_owned(), reason });
    }
    let requirements =
        requirements.into_iter().map(|raw| requirement(path, place, raw)).collect::<Result<_, _>>()?;
    Ok(Rule { place: place.to_owned(), requirements, warn: false })
}

fn requirement(path: &Path, place: &str, raw: Raw) -> Result<Requirement, ImageError> {
    let wrong =
        |reason: String| ImageError::Policy { path: path.to_owned(), reason: format!("{place}: {reason}") };
    let bare = Raw { r#type: raw.r#type.clone(), ..Raw::default() };
    match raw.r#type.as_str() {
        "insecureAcceptAnything" if raw == bare => Ok(Requirement::Accept),
        "reject" if raw == bare => Ok(Requirement::Reject),
        "insecureAcceptAnything" | "reject" => Err(wrong(format!("{} has no further fields", raw.r#type))),
        "sigstoreSigned" => {
            let unsupported = [
                ("keyType", raw.key_type.is_some()),
                ("fulcio", raw.fulcio.is_some()),
                ("pki", raw.pki.is_some()),
                ("rekorPublicKeyPath", raw.rekor_public_key_path.is_some()),
                ("rekorPublicKeyPaths", raw.rekor_public_key_paths.is_some()),
                ("rekorPublicKeyData", raw.rekor_public_key_data.is_some()),
                ("rekorPublicKeyDatas", raw.rekor_public_key_datas.is_some()),
            ];
            if let Some((field, _)) = unsupported.iter().find(|(_, there)| *there) {
                return Err(wrong(format!("sigstoreSigned with {field} is not supported; use public keys")));
            }
            let keys = match (raw.key_path, raw.key_paths, raw.key_data, raw.key_datas) {
                (Some(one), None, None, None) => vec![key_file(path, &one)?],
                (None, Some(many), None, None) => {
                    many.iter().map(|key| key_file(path, key)).collect::<Result<_, _>>()?
                }
                (None, None, Some(one), None) => vec![key_data(path, place, &one)?],
                (None, None, None, Some(many)) => {
                    many.iter().map(|key| key_data(path, place, key)).collect::<Result<_, _>>()?
                }
                _ => {
                    return Err(wrong(
                        "sigstoreSigned needs one of keyPath, keyPaths, keyData, keyDatas".into(),
                    ));
                }
            };
            if keys.is_empty() {
                return Err(wrong("sigstoreSigned has no key".into()));
            }
            let identity = identity(raw.signed_identity).map_err(wrong)?;
            Ok(Requirement::Signed { keys, identity })
        }
        "signedBy" => {
            Err(wrong("signedBy (GPG) is not supported; sign with cosign, use sigstoreSigned".into()))
        }
        other => Err(wrong(format!("requirement type {other:?} is not supported"))),
    }
}

fn key_data(path: &Path, place: &str, data: &str) -> Result<super::key::PublicKey, ImageError> {
    let wrong = |reason: String| ImageError::Policy { path: path.to_owned(), reason };
    let pem = BASE64.decode(data).map_err(|e| wrong(format!("{place}: key data: {e}")))?;
    key_text(path, format!("the key data of {place}"), &pem)
}

fn identity(raw: Option<RawIdentity>) -> Result<Identity, String> {
    let prefix = |text: String| match check_prefix(&text) {
        Ok(()) => Ok(text),
        Err(reason) => Err(format!("signedIdentity {text:?}: {reason}")),
    };
    let named = |text: &str| Reference::parse(text).map_err(|e| format!("signedIdentity: {e}"));
    let (name, strictness) = match raw {
        None | Some(RawIdentity::MatchRepoDigestOrExact) => (Name::Own, Strictness::RepositoryOrExact),
        Some(RawIdentity::MatchExact) => (Name::Own, Strictness::Exact),
        Some(RawIdentity::MatchRepository) => (Name::Own, Strictness::Repository),
        Some(RawIdentity::ExactReference { docker_reference }) if is_bare(&docker_reference) => {
            return Err(format!("exactReference {docker_reference:?} has neither tag nor digest"));
        }
        Some(RawIdentity::ExactReference { docker_reference }) => {
            (Name::Fixed(named(&docker_reference)?), Strictness::Exact)
        }
        Some(RawIdentity::ExactRepository { docker_repository }) if !is_bare(&docker_repository) => {
            return Err(format!("exactRepository {docker_repository:?} has a tag or digest"));
        }
        Some(RawIdentity::ExactRepository { docker_repository }) => {
            (Name::Fixed(named(&docker_repository)?), Strictness::Repository)
        }
        Some(RawIdentity::RemapIdentity { prefix: from, signed_prefix }) => {
            let name = Name::Remapped { prefix: prefix(from)?, signed: prefix(signed_prefix)? };
            (name, Strictness::RepositoryOrExact)
        }
    };
    Ok(Identity { name, strictness })
}

impl<'de, V: Deserialize<'de>> Deserialize<'de> for Unique<V> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Entries<V>(PhantomData<V>);
        impl<'de, V: Deserialize<'de>> Visitor<'de> for Entries<V> {
            type Value = Unique<V>;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
                let mut found = HashMap::new();
                while let Some((key, value)) = map.next_entry::<String, V>()? {
                    if found.insert(key.clone(), value).is_some() {
                        return Err(serde::de::Error::custom(format_args!("{key:?} stands there twice")));
                    }
                }
                Ok(Unique(found))
            }
        }
        deserializer.deserialize_map(Entries(PhantomData))
    }
}

impl<'de> Deserialize<'de> for Transports {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let Unique(mut all) = Unique::<Box<serde_json::value::RawValue>>::deserialize(deserializer)?;
        let docker = all.remove("docker").map(|raw| serde_json::from_str(raw.get()));
        let docker = docker.transpose().map_err(|e| serde::de::Error::custom(format_args!("docker: {e}")))?;
        Ok(Self(docker.unwrap_or_default()))
    }
}
