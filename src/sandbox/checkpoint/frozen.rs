//! State that outlives a daemon that dies while containers are frozen: a note of them, and half-made files. Owns
//! `<state>/checkpoints` and `<root>/checkpoints`.

use crate::host::oci::Runtime;
use crate::model::ContainerId;
use crate::sandbox::acts::node::Node;
use crate::sandbox::acts::private::make_private_dir;
use crate::sandbox::acts::private::remove_tree;
use crate::sandbox::offload::{OffThread, blocking, in_place};
use crate::sandbox::words::checkpoint_error::CheckpointError;
use crate::sandbox::words::error::SandboxError;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use serde::{Deserialize, Serialize};
use std::os::fd::{AsFd as _, BorrowedFd};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

/// Version of a note.
const VERSION: u32 = 1;
/// Time for an earlier daemon's CRIU to end by itself before it is killed: it holds the container's processes.
const ORPHAN_WAIT: Duration = Duration::from_secs(10);

/// Tries to set a container free, with [`RESUME_PAUSE`] between: it fails only where the runtime cannot be run at all.
const RESUME_TRIES: u32 = 5;
/// See [`RESUME_TRIES`].
const RESUME_PAUSE: Duration = Duration::from_millis(200);

#[derive(Debug, Serialize, Deserialize)]
struct Content {
    version: u32,
    /// The handler of the pod.
    handler: String,
    containers: Vec<ContainerId>,
    /// Files and directories that are half made.
    made: Vec<PathBuf>,
}

fn notes(node: &Node) -> PathBuf {
    node.config.state.join("checkpoints")
}

fn stagings(node: &Node) -> PathBuf {
    node.config.root.join("checkpoints")
}

/// A note on disk: these containers may be frozen.
#[derive(Debug)]
pub(super) struct Note(PathBuf);

impl Note {
    pub(super) fn write(
        off: &OffThread,
        node: &Node,
        handler: &str,
        containers: &[ContainerId],
        made: Vec<PathBuf>,
    ) -> Result<Self, SandboxError> {
        let dir = notes(node);
        make_private_dir(off, &dir)?;
        let path = dir.join(format!("{}.json", ContainerId::random()?.short()));
        let content =
            Content { version: VERSION, handler: handler.to_owned(), containers: containers.to_vec(), made };
        let io = |operation| SandboxError::io(operation, &path);
        let text = serde_json::to_vec(&content).map_err(|e| io("encode")(e.into()))?;
        let new = path.with_extension("new");
        std::fs::write(&new, text).map_err(io("write"))?;
        std::fs::rename(&new, &path).map_err(io("write"))?;
        Ok(Self(path))
    }

    /// They are free again.
    pub(super) fn remove(self) {
        if let Err(error) = std::fs::remove_file(&self.0) {
            // Log: The note names containers as frozen that are not.
            // Do: Nothing: the next start removes it.
            tracing::warn!(note = %self.0.display(), %error, "cannot remove the note of a checkpoint");
        }
    }
}

/// A directory for a checkpoint that becomes an archive; removed when dropped.
#[derive(Debug)]
pub(super) struct Staging(PathBuf);

impl Staging {
    pub(super) fn new(off: &OffThread, node: &Node) -> Result<Self, SandboxError> {
        let dir = stagings(node).join(ContainerId::random()?.short());
        make_private_dir(off, &dir)?;
        Ok(Self(dir))
    }

    pub(super) fn path(&self) -> &Path {
        &self.0
    }
}

impl Drop for Staging {
    fn drop(&mut self) {
        if let Err(error) = in_place(|off| remove_tree(off, &self.0)) {
            // Log: A directory in `<root>/checkpoints` could not be removed.
            // Do: Nothing.
            tracing::warn!(%error, "half a checkpoint stays until the next start");
        }
    }
}

/// Remains of an earlier daemon.
#[derive(Debug)]
pub(in crate::sandbox) struct Leftovers {
    notes: Vec<PathBuf>,
    stagings: Vec<PathBuf>,
}

impl Leftovers {
    /// Looked for before serving: what comes afterwards is not left over.
    pub(in crate::sandbox) fn find(node: &Node) -> Self {
        let below = |dir: PathBuf| {
            let found = std::fs::read_dir(dir).into_iter().flatten().flatten();
            found.map(|entry| entry.path()).collect::<Vec<_>>()
        };
        let mut notes = below(notes(node));
        notes.retain(|path| path.extension().is_some_and(|e| e == "json"));
        Self { notes, stagings: below(stagings(node)) }
    }
}

/// Resumes what an earlier daemon left frozen, and removes its half-made files.
pub(in crate::sandbox) async fn thaw(node: Arc<Node>, left: Leftovers) {
    for path in left.notes {
        let note: Option<Content> =
            std::fs::read(&path).ok().and_then(|text| serde_json::from_slice(&text).ok());
        let Some(note) = note.filter(|note| note.version <= VERSION) else {
            // Log: A note in `<state>/checkpoints` is damaged or of a newer podwright.
            // Do: Find frozen containers with the OCI runtime's `list`, `resume` them, delete the note.
            tracing::error!(note = %path.display(), "cannot read which containers an earlier daemon left frozen");
            continue;
        };
        if thaw_one(&node, &note).await {
            Note(path).remove();
        }
    }
    let stagings = left.stagings;
    if let Err(error) = blocking(move |off| stagings.iter().try_for_each(|dir| remove_tree(off, dir))).await {
        // Log: At start, `<root>/checkpoints` could not be emptied.
        // Do: Delete it by hand.
        tracing::warn!(%error, "cannot remove half-made checkpoints");
    }
}

async fn thaw_one(node: &Arc<Node>, note: &Content) -> bool {
    // Log: Its containers were frozen until now.
    // Do: Repeat the checkpoint.
    tracing::warn!(containers = ?note.containers, "the earlier daemon ended during a checkpoint: setting its containers free");
    let made = note.made.clone();
    if let Err(error) = blocking(move |off| end_orphans(off, &made)).await {
        // Log: `/proc` could not be read.
        // Do: Nothing, if the containers run.
        tracing::warn!(%error, "cannot look for a checkpoint that still runs");
    }
    let runtime = match node.handlers.runtime(&note.handler) {
        Ok(runtime) => runtime,
        Err(error) => {
            // Log: The OCI runtime of a pod that an earlier daemon left frozen is missing.
            // Do: Install it and restart the daemon.
            tracing::error!(%error, "cannot set containers free");
            return false;
        }
    };
    let mut all_free = true;
    for id in &note.containers {
        all_free &= set_free(&runtime, id).await.is_ok();
    }
    for path in &note.made {
        let removed = path.clone();
        if let Err(error) = blocking(move |off| remove_tree(off, &removed)).await {
            // Log: A file of a failed checkpoint could not be removed from the caller's directory.
            // Do: Delete it.
            tracing::warn!(path = %path.display(), %error, "half a checkpoint stays");
        }
    }
    all_free
}

/// Waits for a CRIU that still writes there, and kills it after a limit.
fn end_orphans(_: &OffThread, made: &[PathBuf]) -> Result<(), SandboxError> {
    let until = Instant::now() + ORPHAN_WAIT;
    loop {
        let holders = holders(made).map_err(SandboxError::io("read", Path::new("/proc")))?;
        if holders.is_empty() || Instant::now() > until + ORPHAN_WAIT {
            return Ok(());
        }
        let handles: Vec<_> =
            holders.iter().filter_map(|pid| Some((pid, podwright_sys::pidfd::open(*pid).ok()?))).collect();
        let mut limit = until.saturating_duration_since(Instant::now());
        if limit.is_zero() {
            limit = ORPHAN_WAIT;
            for (pid, handle) in &handles {
                // Log: CRIU of an earlier daemon still ran ten seconds after the start.
                // Do: Nothing.
                tracing::warn!(pid, "ending a checkpoint of an earlier daemon");
                let _ = podwright_sys::pidfd::send_signal(handle.as_fd(), podwright_sys::pidfd::SIGKILL);
            }
        }
        let handles: Vec<_> = handles.iter().map(|(_, handle)| handle.as_fd()).collect();
        one_ends(&handles, limit);
    }
}

/// Returns when one of these processes has ended, or the time is up.
fn one_ends(handles: &[BorrowedFd<'_>], limit: Duration) {
    let mut handles: Vec<_> = handles.iter().map(|handle| PollFd::new(handle, PollFlags::IN)).collect();
    let limit = Timespec::try_from(limit).ok();
    // An interruption, like any other error, only has it looked at again.
    let _ = poll(&mut handles, limit.as_ref());
}

/// Processes that have something open below one of these.
fn holders(made: &[PathBuf]) -> std::io::Result<Vec<u32>> {
    let mut holders = Vec::new();
    for entry in std::fs::read_dir("/proc")?.flatten() {
        let Some(pid) = entry.file_name().to_str().and_then(|name| name.parse::<u32>().ok()) else {
            continue;
        };
        if pid == std::process::id() {
            continue;
        }
        let open = std::fs::read_dir(entry.path().join("fd")).into_iter().flatten().flatten();
        let mut files = open.filter_map(|fd| std::fs::read_link(fd.path()).ok());
        if files.any(|file| made.iter().any(|path| file.starts_with(path))) {
            holders.push(pid);
        }
    }
    Ok(holders)
}

/// Lets a container run again.
pub(super) async fn set_free(runtime: &Runtime, id: &ContainerId) -> Result<(), SandboxError> {
    let mut last = String::new();
    for _ in 0..RESUME_TRIES {
        match runtime.resume(id.as_str()).await {
            Ok(()) => return Ok(()),
            Err(error) => last = error.to_string(),
        }
        tokio::time::sleep(RESUME_PAUSE).await;
    }
    let error = CheckpointError::StillFrozen { id: id.clone(), why: last };
    // Log: A container could not be resumed and stays frozen.
    // Do: Restart the daemon, or run the OCI runtime's `resume`.
    tracing::error!(container = %id, %error, "after a checkpoint");
    Err(error.into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_writes_below_a_path_is_found() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("images/pages");
        std::fs::create_dir(dir.path().join("images")).unwrap();
        let mut child = std::process::Command::new("sleep")
            .arg("1000")
            .stdin(std::process::Stdio::null())
            .stdout(std::fs::File::create(&file).unwrap())
            .spawn()
            .unwrap();
        assert_eq!(holders(&[dir.path().to_owned()]).unwrap(), [child.id()]);
        assert!(holders(&[dir.path().join("imag")]).unwrap().is_empty());
        let made = vec![dir.path().to_owned()];
        let ends = std::thread::spawn(move || end_orphans(&crate::host::offload::here(), &made));
        child.kill().unwrap();
        child.wait().unwrap();
        ends.join().unwrap().unwrap();
        assert!(holders(&[dir.path().to_owned()]).unwrap().is_empty());
    }
}
