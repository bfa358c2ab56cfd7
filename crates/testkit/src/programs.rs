//! The static programs inside the stand-in images.
//!
//! Owns finding them in `build/images` and having `tests/images/build.sh` build
//! them there when they are missing. It never builds anything itself.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;

use anyhow::{Context, Result};

/// The programs' bytes, read once.
#[derive(Debug, Clone)]
pub struct Programs {
    /// busybox, static, with a shell that uses no built-in applets.
    pub busybox: Arc<[u8]>,
    /// Paths of busybox's applets, without a leading slash (`bin/ls`).
    pub applets: Vec<String>,
    /// The web server, called `nginx` or `httpd` in images.
    pub webserver: Arc<[u8]>,
    /// Sleeps for ever.
    pub pause: Arc<[u8]>,
    /// Prints its effective uid.
    pub nnp: Arc<[u8]>,
    /// Makes sockets by 32-bit calls.
    pub sockets32: Arc<[u8]>,
}

/// The root of the checkout that this test kit was compiled in.
#[must_use]
pub fn workspace() -> PathBuf {
    let crate_dir = Path::new(env!("CARGO_MANIFEST_DIR"));
    crate_dir.ancestors().nth(2).unwrap_or(crate_dir).to_owned()
}

impl Programs {
    /// Builds what is missing, then reads everything.
    ///
    /// # Errors
    /// Fails if the build script fails (stderr says what it lacks) or a program cannot be read.
    pub fn load() -> Result<Self> {
        let root = workspace();
        let dir = root.join("build/images");
        let script = root.join("tests/images/build.sh");
        let status =
            Command::new(&script).arg(&dir).status().with_context(|| format!("run {}", script.display()))?;
        anyhow::ensure!(status.success(), "{} ended with {status}", script.display());
        Self::read(&dir)
    }

    /// Reads the programs from a directory that [`Self::load`] or the script has filled.
    ///
    /// # Errors
    /// Fails if one cannot be read.
    pub fn read(dir: &Path) -> Result<Self> {
        let read = |name: &str| {
            let path = dir.join(name);
            std::fs::read(&path).with_context(|| format!("read {}", path.display()))
        };
        let applets = String::from_utf8(read("busybox.applets")?).context("busybox.applets is not text")?;
        Ok(Self {
            busybox: read("busybox")?.into(),
            applets: applets.lines().map(str::to_owned).collect(),
            webserver: read("webserver")?.into(),
            pause: read("pause")?.into(),
            nnp: read("nnp")?.into(),
            sockets32: read("sockets32")?.into(),
        })
    }
}
