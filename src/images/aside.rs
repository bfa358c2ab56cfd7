//! An image's config while its layers come. That may take hours, if a registry wants it, and as many pulls may wait as there
//! are processes for them: so a large config waits on disk, and few come back into memory at a time.

use super::error::ImageError;
use super::manifest::{ConfigFile, Node};
use super::offload::blocking;
use super::staging::nameless;
use std::fs::File;
use std::io::{Read as _, Seek as _, Write as _};
use std::path::{Path, PathBuf};
use tokio::sync::{Semaphore, SemaphorePermit};

/// Bytes of a config that stays in memory. Real ones have a few KiB; what is read of one is no longer than itself.
const SMALL: usize = 64 << 10;
/// Large configs in memory at a time, while their images are added.
const AT_A_TIME: usize = 4;
static TURNS: Semaphore = Semaphore::const_new(AT_A_TIME);

/// A config that waits.
#[derive(Debug)]
pub(super) enum Aside {
    InMemory(Vec<u8>, Box<ConfigFile>),
    OnDisk { name: String, file: File, is_image: bool, layers: usize },
}

/// A config that is back.
#[derive(Debug)]
pub(super) struct Back {
    pub(super) body: Vec<u8>,
    pub(super) file: ConfigFile,
    /// To be kept until both are dropped.
    pub(super) turn: Option<SemaphorePermit<'static>>,
}

impl Aside {
    /// Lays a config aside, in a file without a name in `staging` if it is large. `file`: None for an artifact, whose config
    /// is no image's.
    pub(super) async fn lay(
        what: &str,
        staging: PathBuf,
        body: Vec<u8>,
        file: Option<ConfigFile>,
    ) -> Result<Self, ImageError> {
        if body.len() <= SMALL {
            return Ok(Self::InMemory(body, Box::new(file.unwrap_or_default())));
        }
        let (name, is_image) = (what.to_owned(), file.is_some());
        let layers = file.map_or(0, |file| file.diff_ids().len());
        blocking(move || {
            let mut file = nameless(&staging)?;
            file.write_all(&body).map_err(|e| ImageError::io("write a config in", &staging, e))?;
            Ok(Self::OnDisk { name, file, is_image, layers })
        })
        .await
    }

    /// Takes it back, as soon as there is room for it.
    pub(super) async fn back(self) -> Result<Back, ImageError> {
        let (name, mut from, is_image, layers) = match self {
            Self::InMemory(body, file) => return Ok(Back { body, file: *file, turn: None }),
            Self::OnDisk { name, file, is_image, layers } => (name, file, is_image, layers),
        };
        // Never closed.
        let turn = TURNS.acquire().await.ok();
        blocking(move || {
            let mut body = Vec::new();
            from.rewind()
                .and_then(|()| from.read_to_end(&mut body))
                .map_err(|e| ImageError::io("read the config of", Path::new(&name), e))?;
            let file = match is_image {
                true => ConfigFile::parse(&name, &body, layers, Node::here())?,
                false => ConfigFile::default(),
            };
            Ok(Back { body, file, turn })
        })
        .await
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::images::tests::fixture::Content;

    #[tokio::test]
    async fn a_large_config_waits_on_disk_and_comes_back_as_it_was() {
        let staging = tempfile::tempdir().unwrap();
        for (length, is_large) in [(10, false), (100_000, true)] {
            let mut content = Content::default();
            let (_, id) = content.add("x", &[], &format!(r#"{{"Env":["A={}"]}}"#, "x".repeat(length)));
            let body = content.blobs[id.as_str()].clone();
            let parsed = ConfigFile::parse("x", &body, 0, Node::here()).unwrap();
            let aside = Aside::lay("x", staging.path().to_owned(), body.clone(), Some(parsed)).await.unwrap();
            assert_eq!(matches!(aside, Aside::OnDisk { .. }), is_large);
            let back = aside.back().await.unwrap();
            assert!(back.body == body);
            assert_eq!(back.file.config.unwrap().env[0].len(), length + 2);
        }
        // The config of an artifact may be anything.
        let aside = Aside::lay("x", staging.path().to_owned(), vec![0xff; 100_000], None).await.unwrap();
        assert!(matches!(aside, Aside::OnDisk { .. }));
        let back = aside.back().await.unwrap();
        assert!(back.body == [0xff; 100_000] && back.file.config.is_none());
        assert_eq!(std::fs::read_dir(staging.path()).unwrap().count(), 0);
    }
}
