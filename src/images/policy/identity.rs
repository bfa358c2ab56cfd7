//! The image that a signature must name: the image itself, or its name where it was signed. Pure.

use crate::images::reference::{Reference, Target};
use std::borrow::Cow;

/// What a signature must say about its image.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Identity {
    pub(super) name: Name,
    pub(super) strictness: Strictness,
}

/// The name that is looked for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Name {
    /// The image's own name, as the pod has it; a mirror's name never counts.
    Own,
    /// This name, whatever the image is called.
    Fixed(Reference),
    /// The image's own name with another prefix, for images copied with their signatures.
    Remapped { prefix: String, signed: String },
}

/// How much of the name must match.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Strictness {
    /// Registry and repository. cosign's own signatures have no more.
    Repository,
    /// Also the tag or digest.
    Exact,
    /// The tag too, if the image is requested by tag.
    RepositoryOrExact,
}

impl Identity {
    /// The image's own repository.
    pub(super) const OWN_REPOSITORY: Self = Self { name: Name::Own, strictness: Strictness::Repository };

    /// Whether a signature that names `signed` is for `image`.
    pub(super) fn accepts(&self, image: &Reference, signed: &str) -> bool {
        let Ok(parsed) = Reference::parse(signed) else { return false };
        let (name, target) = match &self.name {
            Name::Own => (image.name(), image.target()),
            Name::Fixed(fixed) => (fixed.name(), fixed.target()),
            Name::Remapped { prefix, signed } => (remapped(&image.name(), prefix, signed), image.target()),
        };
        if parsed.name() != name {
            return false;
        }
        // A name without a tag means no tag, not `latest`.
        let exact = !is_bare(signed) && parsed.target() == target;
        match self.strictness {
            Strictness::Repository => true,
            Strictness::Exact => exact,
            Strictness::RepositoryOrExact => match target {
                Target::Tag(_) => exact,
                Target::Digest(_) => !is_bare(signed),
            },
        }
    }

    /// The expected repository, for messages.
    pub(super) fn expected(&self, image: &Reference) -> String {
        match (&self.name, self.strictness) {
            (Name::Own, Strictness::Repository) => image.name(),
            (Name::Own, _) => image.to_string(),
            (Name::Fixed(fixed), Strictness::Repository) => fixed.name(),
            (Name::Fixed(fixed), _) => fixed.to_string(),
            (Name::Remapped { prefix, signed }, Strictness::Repository) => {
                remapped(&image.name(), prefix, signed)
            }
            (Name::Remapped { prefix, signed }, _) => {
                format!("{}{}", remapped(&image.name(), prefix, signed), image.target())
            }
        }
    }
}

fn remapped(name: &str, prefix: &str, signed: &str) -> String {
    match name.strip_prefix(prefix) {
        Some(rest) if rest.is_empty() || rest.starts_with('/') => format!("{signed}{rest}"),
        _ => name.to_owned(),
    }
}

/// Whether a reference has neither tag nor digest.
pub(super) fn is_bare(reference: &str) -> bool {
    let last = reference.rsplit('/').next().unwrap_or_default();
    !reference.contains('@') && !last.contains(':')
}

/// The scopes that an image falls in, the narrowest first: itself, its repository, all that is above it, its registry, and
/// the registry's domains as `*.example.com`.
pub(super) fn scopes(image: &Reference) -> Vec<String> {
    // Host names have no case; repositories are lower case by their grammar.
    let name = image.name().to_ascii_lowercase();
    let host = name.split('/').next().unwrap_or_default();
    let mut scopes = vec![format!("{name}{}", image.target())];
    let mut at = name.as_str();
    loop {
        scopes.push(at.to_owned());
        match at.rsplit_once('/') {
            Some((above, _)) => at = above,
            None => break,
        }
    }
    let domains = host.match_indices('.').map(|(dot, _)| format!("*{}", &host[dot..]));
    scopes.extend(domains);
    scopes
}

/// Whether `prefix` is `host[/path]` in the form of normalised references; anything else would never match an image.
pub(super) fn check_prefix(prefix: &str) -> Result<(), &'static str> {
    let probe = format!("{prefix}/x");
    match Reference::parse(&probe) {
        Ok(parsed) if parsed.name() == probe && !prefix.bytes().any(|b| b.is_ascii_uppercase()) => Ok(()),
        Ok(_) => Err(
            "not in full form: host in lower case, then path; Docker Hub's busybox is docker.io/library/busybox",
        ),
        Err(_) => Err("not a registry host with or without a path"),
    }
}

/// `check_prefix` for a policy's name with `*.domain`, a tag or a digest.
pub(super) fn check_scope(scope: &str) -> Result<(), &'static str> {
    if let Some(domain) = scope.strip_prefix("*.") {
        return if domain.contains('/') { Err("a domain has no path") } else { check_prefix(domain) };
    }
    // A colon in the last part is a tag's, unless that part is the host.
    if scope.contains('/') && !is_bare(scope) {
        let parsed = Reference::parse(scope).map_err(|_| "not an image reference")?;
        let full: Cow<'_, str> = parsed.to_string().into();
        return if full == scope { Ok(()) } else { Err("not in full form") };
    }
    check_prefix(scope)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn image(text: &str) -> Reference {
        Reference::parse(text).unwrap()
    }

    fn identity(name: Name, strictness: Strictness) -> Identity {
        Identity { name, strictness }
    }

    #[test]
    fn cosigns_name_fits_any_tag_of_the_repository_only() {
        let own = Identity::OWN_REPOSITORY;
        for signed in ["r.io/a/b", "r.io/a/b:other"] {
            assert!(own.accepts(&image("r.io/a/b:1"), signed), "{signed}");
        }
        assert!(own.accepts(&image("busybox"), "index.docker.io/library/busybox"));
        for signed in ["r.io/a/c", "r.io/a", "r.io/a/b/c", "other.io/a/b", "a/b", "", "R.io/a/B"] {
            assert!(!own.accepts(&image("r.io/a/b:1"), signed), "{signed}");
        }
    }

    #[test]
    fn tags_count_where_they_are_asked_for() {
        let digest = format!("r.io/a@sha256:{}", "0".repeat(64));
        let both = identity(Name::Own, Strictness::RepositoryOrExact);
        let exact = identity(Name::Own, Strictness::Exact);
        for (image_name, signed, by_both, by_exact) in [
            ("r.io/a:1", "r.io/a:1", true, true),
            ("r.io/a:1", "r.io/a:2", false, false),
            ("r.io/a:latest", "r.io/a", false, false),
            (digest.as_str(), "r.io/a:2", true, false),
            (digest.as_str(), digest.as_str(), true, true),
            (digest.as_str(), "r.io/b:2", false, false),
            (digest.as_str(), "r.io/a", false, false),
        ] {
            let image = image(image_name);
            assert_eq!(both.accepts(&image, signed), by_both, "{image_name} {signed}");
            assert_eq!(exact.accepts(&image, signed), by_exact, "{image_name} {signed}");
        }
    }

    #[test]
    fn copies_are_looked_for_under_their_first_name() {
        let name = Name::Remapped { prefix: "local:5000/vendor".into(), signed: "vendor.io".into() };
        let identity = identity(name, Strictness::Repository);
        assert!(identity.accepts(&image("local:5000/vendor/a:1"), "vendor.io/a"));
        assert!(!identity.accepts(&image("local:5000/vendor/a:1"), "local:5000/vendor/a"));
        assert!(!identity.accepts(&image("local:5000/vendors/a:1"), "vendor.io/a"));
        assert_eq!(identity.expected(&image("local:5000/vendor/a:1")), "vendor.io/a");
    }

    #[test]
    fn scopes_go_from_narrow_to_wide() {
        let all = scopes(&image("Reg.a.io:5000/team/app:1"));
        let expected = [
            "reg.a.io:5000/team/app:1",
            "reg.a.io:5000/team/app",
            "reg.a.io:5000/team",
            "reg.a.io:5000",
            "*.a.io:5000",
            "*.io:5000",
        ];
        assert_eq!(all, expected);
    }

    #[test]
    fn a_scope_that_could_never_fit_is_refused() {
        for good in ["r.io", "r.io:5000", "localhost/a", "r.io/a/b", "docker.io/library/busybox"] {
            assert_eq!(check_prefix(good), Ok(()), "{good}");
        }
        for bad in
            ["", "busybox", "team/app", "r.io/", "r.io//a", "https://r.io", "index.docker.io/a/b", "R.io"]
        {
            assert!(check_prefix(bad).is_err(), "{bad}");
        }
        for good in ["*.r.io", "r.io/a:1", "r.io:5000"] {
            assert_eq!(check_scope(good), Ok(()), "{good}");
        }
        for bad in ["*.r.io/a", "a*.r.io", "r.io/a:b:c", "library/busybox:1"] {
            assert!(check_scope(bad).is_err(), "{bad}");
        }
    }
}
