//! What ExecSync keeps of the output of commands: one budget for all calls, in which each call has a share of its own from
//! its start, so that no flood of others takes its output away. Places and memory beyond the shares are given out so that
//! however many pods want all of it, some is left for the next. Never waits: what has no room is dropped.

use crate::model::SandboxId;
use crate::sandbox::words::error::SandboxError;
use std::collections::HashMap;
use std::os::fd::OwnedFd;
use std::path::Path;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use tokio::net::unix::pipe;
use tokio::task::JoinHandle;

/// Bytes read from a pipe at once: a quarter of the kernel's default pipe. They stand on the stack, so that a command
/// that says nothing costs nothing.
const READ_BYTES: usize = 16 << 10;
/// A stream's own share. The kubelet looks at the first 10 KiB of a probe's output (`maxProbeMessageLength`).
const SHARE_BYTES: usize = 16 << 10;
/// Of a call: stdout and stderr.
const CALL_BYTES: usize = 2 * SHARE_BYTES;
/// A pod may have this part of the calls, and no more than half as many as are free: so ever less is left for pods that
/// want all, but always some for one that has none.
const POD_PART: usize = 4;

/// The budget of all calls. Cheap to clone.
#[derive(Debug, Clone)]
pub(in crate::sandbox) struct OutputBudget(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    calls: usize,
    calls_of_pod: usize,
    open: Mutex<Open>,
}

#[derive(Debug)]
struct Open {
    /// What no call has of what is beyond the shares.
    common: usize,
    pods: HashMap<SandboxId, Taken>,
}

/// What the calls of a pod have.
#[derive(Debug, Default, Clone, Copy)]
struct Taken {
    calls: usize,
    /// Beyond their shares.
    bytes: usize,
}

/// A call's place in the budget; its last clone gives everything back.
#[derive(Debug, Clone)]
pub struct OutputHold(Arc<Hold>);

#[derive(Debug)]
struct Hold {
    budget: OutputBudget,
    pod: SandboxId,
    /// What the call may still take beyond its share.
    left: AtomicUsize,
    taken: AtomicUsize,
}

impl OutputBudget {
    /// One of this many bytes: half for shares, half for who has more to say.
    #[must_use]
    pub(in crate::sandbox) fn new(bytes: usize) -> Self {
        let calls = (bytes / 2 / CALL_BYTES).max(1);
        let common = bytes.saturating_sub(calls * CALL_BYTES);
        Self(Arc::new(Shared {
            calls,
            calls_of_pod: calls.div_ceil(POD_PART),
            open: Mutex::new(Open { common, pods: HashMap::new() }),
        }))
    }

    fn open(&self) -> MutexGuard<'_, Open> {
        // Every section leaves it whole.
        self.0.open.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A place for a call whose streams may have `limit` bytes together.
    ///
    /// # Errors
    /// When the pod, or all pods, have as many calls as there are places.
    pub(in crate::sandbox) fn enter(
        &self,
        pod: &SandboxId,
        limit: usize,
    ) -> Result<OutputHold, SandboxError> {
        let mut open = self.open();
        // Pods with calls are few, and a call starts a process.
        let all: usize = open.pods.values().map(|pod| pod.calls).sum();
        let of_pod = open.pods.get(pod).map_or(0, |pod| pod.calls);
        let free = self.0.calls.saturating_sub(all);
        for (whose, refused, most) in [
            ("all pods together", free == 0, self.0.calls),
            ("this pod", of_pod >= self.0.calls_of_pod, self.0.calls_of_pod),
            ("this pod, while others have as many,", of_pod > 0 && of_pod * 2 >= free, of_pod),
        ] {
            if refused {
                return Err(SandboxError::TooManyExecs { whose, most });
            }
        }
        open.pods.entry(pod.clone()).or_default().calls += 1;
        drop(open);
        Ok(OutputHold(Arc::new(Hold {
            budget: self.clone(),
            pod: pod.clone(),
            left: AtomicUsize::new(limit.saturating_sub(CALL_BYTES)),
            taken: AtomicUsize::new(0),
        })))
    }
}

/// Takes up to `wanted` from what is left.
fn take(left: &AtomicUsize, wanted: usize) -> usize {
    let mut granted = 0;
    let _ = left.fetch_update(Ordering::AcqRel, Ordering::Acquire, |left| {
        granted = wanted.min(left);
        Some(left - granted)
    });
    granted
}

impl Hold {
    /// How many of `wanted` bytes more a stream may hold that holds `held` of them.
    fn grant(&self, held: usize, wanted: usize) -> usize {
        let own = SHARE_BYTES.saturating_sub(held).min(wanted);
        let of_call = take(&self.left, wanted - own);
        let common = if of_call == 0 { 0 } else { self.take_common(of_call) };
        self.left.fetch_add(of_call - common, Ordering::AcqRel);
        self.taken.fetch_add(common, Ordering::AcqRel);
        own + common
    }

    /// As much as leaves the others no less than this pod has.
    fn take_common(&self, wanted: usize) -> usize {
        let mut open = self.budget.open();
        let Open { common, pods } = &mut *open;
        let Some(pod) = pods.get_mut(&self.pod) else { return 0 };
        let granted = wanted.min(common.saturating_sub(pod.bytes) / 2);
        *common -= granted;
        pod.bytes += granted;
        granted
    }
}

impl Drop for Hold {
    fn drop(&mut self) {
        let taken = self.taken.load(Ordering::Acquire);
        let mut open = self.budget.open();
        open.common += taken;
        let Some(pod) = open.pods.get_mut(&self.pod) else { return };
        pod.calls = pod.calls.saturating_sub(1);
        pod.bytes = pod.bytes.saturating_sub(taken);
        if pod.calls == 0 {
            open.pods.remove(&self.pod);
        }
    }
}

/// Reads one stream to its end, keeping the first bytes.
pub(in crate::sandbox) struct Collector {
    task: JoinHandle<()>,
    kept: Arc<Mutex<Vec<u8>>>,
}

/// Drains a pipe of a command, keeping at most `limit` bytes, and no more than `hold` grants.
pub(in crate::sandbox) fn collect(
    pipe: OwnedFd,
    limit: usize,
    hold: &OutputHold,
) -> Result<Collector, SandboxError> {
    let receiver = pipe::Receiver::from_owned_fd(pipe)
        .map_err(SandboxError::io("read from the pipe of", Path::new("exec output")))?;
    let kept = Arc::new(Mutex::new(Vec::new()));
    let (keep, hold) = (kept.clone(), hold.clone());
    let task = tokio::spawn(async move {
        while receiver.readable().await.is_ok() {
            match read_some(&receiver, limit, &hold.0, &keep) {
                Ok(0) => return,
                Ok(_) => {}
                Err(error)
                    if matches!(
                        error.kind(),
                        std::io::ErrorKind::WouldBlock | std::io::ErrorKind::Interrupted
                    ) => {}
                Err(_) => return,
            }
        }
    });
    Ok(Collector { task, kept })
}

fn read_some(
    receiver: &pipe::Receiver,
    limit: usize,
    hold: &Hold,
    kept: &Mutex<Vec<u8>>,
) -> std::io::Result<usize> {
    let mut buffer = [0; READ_BYTES];
    let n = receiver.try_read(&mut buffer)?;
    let mut kept = kept.lock().unwrap_or_else(PoisonError::into_inner);
    let room = make_room(&mut kept, n, limit, hold);
    kept.extend_from_slice(&buffer[..room]);
    Ok(n)
}

/// Room for up to `more` bytes; what the vector holds is what was granted, not only what is in it.
fn make_room(kept: &mut Vec<u8>, more: usize, limit: usize, hold: &Hold) -> usize {
    let wanted = limit.saturating_sub(kept.len()).min(more);
    let (held, needed) = (kept.capacity(), kept.len() + wanted);
    if needed > held {
        // Twice as much, so that a long output is not copied for each piece of it.
        let granted = hold.grant(held, needed.max(2 * held).min(limit) - held);
        kept.reserve_exact(held + granted - kept.len());
    }
    wanted.min(kept.capacity() - kept.len())
}

impl Collector {
    /// What was kept, at the stream's end or at `deadline`.
    pub(in crate::sandbox) async fn finish(mut self, deadline: tokio::time::Instant) -> Vec<u8> {
        if tokio::time::timeout_at(deadline, &mut self.task).await.is_err() {
            self.task.abort();
        }
        std::mem::take(&mut *self.kept.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

impl Drop for Collector {
    fn drop(&mut self) {
        self.task.abort();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write as _;
    use std::time::Duration;

    const BUDGET: usize = 1 << 20;
    const STREAM: usize = 16 << 20;

    fn pod() -> SandboxId {
        SandboxId::random().unwrap()
    }

    /// Floods both streams of a call and gives what is kept of them.
    async fn flood(hold: &OutputHold, bytes: usize) -> [Vec<u8>; 2] {
        let mut streams = Vec::new();
        for byte in [b'o', b'e'] {
            let (reader, mut writer) = std::io::pipe().unwrap();
            let collector = collect(reader.into(), STREAM, hold).unwrap();
            let writer = tokio::task::spawn_blocking(move || {
                writer.write_all(&vec![byte; bytes]).unwrap();
            });
            streams.push((writer, collector));
        }
        let mut kept = Vec::new();
        for (writer, collector) in streams {
            writer.await.unwrap();
            kept.push(collector.finish(tokio::time::Instant::now() + Duration::from_secs(20)).await);
        }
        kept.try_into().unwrap()
    }

    #[tokio::test]
    async fn commands_that_flood_side_by_side_are_held_to_one_budget_and_leave_others_their_share() {
        let budget = OutputBudget::new(BUDGET);
        let mut held = Vec::new();
        let mut total = 0;
        for _ in 0..budget.0.calls - 1 {
            let hold = budget.enter(&pod(), STREAM).unwrap();
            let kept = flood(&hold, 512 << 10).await;
            assert!(kept.iter().all(|kept| kept.len() >= SHARE_BYTES));
            total += kept.iter().map(Vec::capacity).sum::<usize>();
            held.push((hold, kept));
            // However many want all of it.
            assert!(budget.open().common > 0);
        }
        assert!(total <= BUDGET && total > BUDGET / 2, "{total}");
        // A probe among them.
        let probe = budget.enter(&pod(), STREAM).unwrap();
        let kept = flood(&probe, SHARE_BYTES).await;
        assert!(kept.iter().all(|kept| kept.len() == SHARE_BYTES), "its own share was taken");
        drop((held, probe));
        assert_eq!(budget.open().common, BUDGET / 2, "everything is given back");
        assert!(budget.open().pods.is_empty());
    }

    #[tokio::test]
    async fn both_streams_of_a_call_stay_below_one_message() {
        let budget = OutputBudget::new(64 << 20);
        let hold = budget.enter(&pod(), 100_000).unwrap();
        let kept = flood(&hold, 1 << 20).await;
        let total = kept.iter().map(Vec::len).sum::<usize>();
        assert!(total <= 100_000 && total > CALL_BYTES, "{total}");
    }

    #[test]
    fn calls_are_bounded_in_number_and_no_pod_has_all_of_them() {
        let budget = OutputBudget::new(BUDGET);
        let greedy = pod();
        let mut held = Vec::new();
        let refused = loop {
            match budget.enter(&greedy, STREAM) {
                Ok(hold) => held.push(hold),
                Err(error) => break error,
            }
        };
        assert_eq!((budget.0.calls, held.len()), (16, 4));
        assert!(refused.to_string().contains("this pod"), "{refused}");
        held.extend((4..16).map(|_| budget.enter(&pod(), STREAM).unwrap()));
        let refused = budget.enter(&pod(), STREAM).unwrap_err().to_string();
        assert!(refused.contains("all pods") && refused.contains("16"), "{refused}");
        held.clear();
        assert!(budget.enter(&greedy, STREAM).is_ok());
    }

    #[test]
    fn pods_that_want_all_places_leave_some_for_one_that_has_none() {
        let budget = OutputBudget::new(64 << 20);
        let pods: Vec<_> = (0..50).map(|_| pod()).collect();
        let mut held = Vec::new();
        for _ in 0..budget.0.calls {
            held.extend(pods.iter().filter_map(|pod| budget.enter(pod, STREAM).ok()));
        }
        let free = budget.0.calls - held.len();
        assert!(held.len() > budget.0.calls / 2 && free > 10, "{free}");
        for _ in 0..free {
            held.push(budget.enter(&pod(), STREAM).unwrap());
        }
    }

    #[test]
    fn what_a_vector_holds_is_counted() {
        let budget = OutputBudget::new(BUDGET);
        let hold = budget.enter(&pod(), STREAM).unwrap();
        let mut kept = Vec::new();
        for _ in 0..100 {
            let room = make_room(&mut kept, 5_000, STREAM, &hold.0);
            kept.resize(kept.len() + room, 0);
            let granted = hold.0.taken.load(Ordering::SeqCst) + SHARE_BYTES;
            assert!(kept.capacity() <= granted, "{} of {granted}", kept.capacity());
        }
        // Half of what is common: as much is left for others.
        assert!(
            kept.len() > BUDGET / 4 && kept.capacity() <= BUDGET / 4 + SHARE_BYTES,
            "{}",
            kept.capacity()
        );
    }
}
