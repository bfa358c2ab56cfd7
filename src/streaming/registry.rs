//! The open sessions, for `podwright status`. Owns a list that sessions enter and leave by themselves; knows nothing of
//! how they are served.

use super::metrics::{KindMetrics, StreamingMetrics};
use super::tokens::Ticket;
use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// The kind of a session.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SessionKind {
    /// A command.
    Exec,
    /// A container's own process.
    Attach,
    /// Connections into a pod.
    PortForward,
}

impl SessionKind {
    /// As in metrics and URLs.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Exec => "exec",
            Self::Attach => "attach",
            Self::PortForward => "portforward",
        }
    }
}

/// A snapshot of an open session.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SessionInfo {
    /// Rises from session to session.
    pub number: u64,
    /// Its kind.
    pub kind: SessionKind,
    /// Full id of the container, or of the sandbox for port-forward.
    pub target: String,
    /// The protocol that client and server agreed on, with its carrier.
    pub protocol: String,
    /// Since the end of its handshake.
    pub age: Duration,
    /// Bytes that the client sent.
    pub sent: u64,
    /// Bytes that the client received.
    pub received: u64,
}

#[derive(Debug)]
struct Entry {
    kind: SessionKind,
    target: String,
    protocol: String,
    begun: Instant,
    sent: AtomicU64,
    received: AtomicU64,
}

#[derive(Debug, Default)]
struct Table {
    next: u64,
    open: BTreeMap<u64, Arc<Entry>>,
}

/// The open sessions. Cheap to clone.
#[derive(Debug, Clone, Default)]
pub struct Sessions(Arc<Mutex<Table>>);

/// An open session; its drop is the end.
#[derive(Debug)]
pub(super) struct OpenSession {
    sessions: Sessions,
    number: u64,
    entry: Arc<Entry>,
    metrics: KindMetrics,
}

/// Counts one session's bytes.
#[derive(Debug, Clone)]
pub(super) struct Meter {
    entry: Arc<Entry>,
    metrics: KindMetrics,
}

impl Sessions {
    fn lock(&self) -> MutexGuard<'_, Table> {
        // Every section leaves it whole.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Those that are open, oldest first.
    #[must_use]
    pub fn list(&self) -> Vec<SessionInfo> {
        let info = |(number, entry): (&u64, &Arc<Entry>)| SessionInfo {
            number: *number,
            kind: entry.kind,
            target: entry.target.clone(),
            protocol: entry.protocol.clone(),
            age: entry.begun.elapsed(),
            sent: entry.sent.load(Ordering::Relaxed),
            received: entry.received.load(Ordering::Relaxed),
        };
        self.lock().open.iter().map(info).collect()
    }

    /// Enters a session.
    pub(super) fn open(&self, metrics: &StreamingMetrics, ticket: &Ticket, protocol: String) -> OpenSession {
        let (kind, target) = match ticket {
            Ticket::Exec(exec) => (SessionKind::Exec, &exec.container),
            Ticket::Attach(attach) => (SessionKind::Attach, &attach.container),
            Ticket::PortForward(forward) => (SessionKind::PortForward, &forward.sandbox),
        };
        let entry = Arc::new(Entry {
            kind,
            target: target.clone(),
            protocol,
            begun: Instant::now(),
            sent: AtomicU64::new(0),
            received: AtomicU64::new(0),
        });
        let metrics = metrics.of(kind.name());
        metrics.begin();
        let mut table = self.lock();
        let number = table.next;
        table.next += 1;
        table.open.insert(number, entry.clone());
        drop(table);
        OpenSession { sessions: self.clone(), number, entry, metrics }
    }
}

impl OpenSession {
    pub(super) fn meter(&self) -> Meter {
        Meter { entry: self.entry.clone(), metrics: self.metrics.clone() }
    }
}

impl Drop for OpenSession {
    fn drop(&mut self) {
        self.sessions.lock().open.remove(&self.number);
        self.metrics.end(self.entry.begun.elapsed());
    }
}

impl Meter {
    /// Bytes went to the client.
    pub(super) fn went(&self, bytes: usize) {
        self.entry.received.fetch_add(bytes as u64, Ordering::Relaxed);
        self.metrics.went(bytes as u64);
    }

    /// Bytes came from the client.
    pub(super) fn came(&self, bytes: usize) {
        self.entry.sent.fetch_add(bytes as u64, Ordering::Relaxed);
        self.metrics.came(bytes as u64);
    }
}

#[cfg(test)]
mod tests {
    use super::super::backend::{AttachRequest, PortForwardRequest, Stdio};
    use super::*;

    #[test]
    fn sessions_are_listed_with_their_bytes_until_they_end() {
        let sessions = Sessions::default();
        let metrics = StreamingMetrics::register(&prometheus::Registry::new()).unwrap();
        let attach = Ticket::Attach(AttachRequest { container: "c1".into(), stdio: Stdio::default() });
        let forward = Ticket::PortForward(PortForwardRequest { sandbox: "s1".into(), ports: vec![80] });
        let first = sessions.open(&metrics, &attach, "SPDY/3.1 v4".into());
        let second = sessions.open(&metrics, &forward, "websocket".into());
        let meter = first.meter();
        meter.went(7);
        meter.came(3);
        meter.came(2);
        let listed = sessions.list();
        let seen: Vec<_> = listed.iter().map(|s| (s.kind, s.target.as_str(), s.sent, s.received)).collect();
        assert_eq!(seen, [(SessionKind::Attach, "c1", 5, 7), (SessionKind::PortForward, "s1", 0, 0)]);
        drop(first);
        assert_eq!(sessions.list().iter().map(|s| s.number).collect::<Vec<_>>(), [1]);
        drop(second);
        assert!(sessions.list().is_empty());
    }
}
