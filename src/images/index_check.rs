//! Whether the index is whole. redb panics where a page is not what its type says, which would end the daemon, at each start
//! again. So a worker looks first, at a copy in its memory.

use super::unpack::plain;
use crate::host::worker::{Ends, Program, Worker};
use redb::StorageBackend as _;
use redb::backends::InMemoryBackend;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fd::OwnedFd;
use rustix::pipe::{PipeFlags, pipe_with};
use std::fs::File;
use std::io::{self, Read as _, Write as _};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;
use std::time::{Duration, Instant};

/// Looks at an index. Memory: the index, as much again while it grows, and what redb keeps.
pub(crate) const CHECKER: Program = Program {
    name: "index-check",
    memory: 2 * LARGEST + (128 << 20),
    descriptors: 0,
    calls: &[],
    fcntl: &[],
    body: work,
};
/// Bytes of an index that is looked at: ten thousand images with configs of 50 KiB.
const LARGEST: u64 = 512 << 20;
/// Far more than the largest takes.
const PATIENCE: Duration = Duration::from_mins(2);
/// Bytes of what it says.
const MAX_WORDS: u64 = 1024;
const WHOLE: u8 = b'y';
const DAMAGED: u8 = b'n';

/// What was seen.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Verdict {
    Whole,
    Damaged(String),
    /// Why it could not be looked at.
    Unknown(String),
}

/// Has an index looked at. Blocking.
pub(crate) fn check(path: &Path) -> Verdict {
    match ask(path) {
        Ok(verdict) => verdict,
        Err(error) => Verdict::Unknown(error.to_string()),
    }
}

fn ask(path: &Path) -> io::Result<Verdict> {
    let index = File::open(path)?;
    let length = index.metadata()?.len();
    if length > LARGEST {
        return Ok(Verdict::Unknown(format!("it has {length} bytes, looked at are up to {LARGEST}")));
    }
    let pipe = || pipe_with(PipeFlags::CLOEXEC);
    let ((words, output), (control, _nobody)) = (pipe()?, pipe()?);
    let worker = Worker::start(&CHECKER, index.into(), output, control)?;
    let Some(said) = hear(words)? else {
        return Ok(Verdict::Damaged(format!("looking at it takes more than {} s", PATIENCE.as_secs())));
    };
    let end = worker.end();
    Ok(match said.split_first() {
        Some((&WHOLE, [])) => Verdict::Whole,
        Some((&DAMAGED, words)) => Verdict::Damaged(plain(words)),
        _ => Verdict::Unknown(end.unwrap_or_else(|| "its reader ended without a word".into())),
    })
}

/// All that is said; None: not in time.
fn hear(words: OwnedFd) -> io::Result<Option<Vec<u8>>> {
    let (until, mut words, mut said) = (Instant::now() + PATIENCE, File::from(words), Vec::new());
    loop {
        let left = until.saturating_duration_since(Instant::now());
        let left = Timespec::try_from(left).map_err(io::Error::other)?;
        match poll(&mut [PollFd::new(&words, PollFlags::IN)], Some(&left)) {
            Ok(0) => return Ok(None),
            Err(rustix::io::Errno::INTR) => continue,
            polled => polled?,
        };
        let mut some = [0; 256];
        match words.read(&mut some)? {
            0 => return Ok(Some(said)),
            read => said.extend_from_slice(&some[..read]),
        }
        if u64::try_from(said.len()).unwrap_or(u64::MAX) > MAX_WORDS {
            return Err(io::Error::other("its reader says too much"));
        }
    }
}

/// The worker.
fn work(ends: Ends) {
    let Ends { mut input, mut output, control: _ } = ends;
    if cfg!(panic = "abort")
        && let Ok(output) = output.try_clone()
    {
        // The last thing that it does.
        std::panic::set_hook(Box::new(move |panic| {
            let _ = (&output).write_all(&words(&panic.to_string()));
        }));
    }
    let mut bytes = Vec::new();
    if input.read_to_end(&mut bytes).is_err() {
        return;
    }
    let said = match catch_unwind(AssertUnwindSafe(|| look(&bytes))) {
        Ok(Ok(())) => vec![WHOLE],
        Ok(Err(error)) => words(&error.to_string()),
        Err(_) => words("a page is not what it should be"),
    };
    // Nobody hears it: whoever asked has given up.
    let _ = output.write_all(&said);
}

fn words(reason: &str) -> Vec<u8> {
    let reason = super::error::cut(reason);
    [&[DAMAGED], reason.as_bytes()].concat()
}

fn look(bytes: &[u8]) -> Result<(), redb::Error> {
    let memory = InMemoryBackend::new();
    let length = u64::try_from(bytes.len()).unwrap_or(u64::MAX);
    memory.set_len(length).and_then(|()| memory.write(0, bytes)).map_err(io::Error::other)?;
    let mut database = redb::Builder::new().create_with_backend(memory)?;
    // False: repaired, as the daemon's own opening will.
    database.check_integrity()?;
    Ok(())
}
