//! Tokens: the only secret between a CRI call and the connection that follows. Single use, short-lived, bounded in
//! number and bytes.

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use std::collections::{HashMap, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use super::backend::{AttachRequest, ExecRequest, PortForwardRequest};
use crate::model::random;

/// Randomness of a token: 192 bits, 32 characters of base64url without padding.
const TOKEN_BYTES: usize = 24;
/// Time for a client to connect, as in containerd and CRI-O.
pub(super) const LIFETIME: Duration = Duration::from_secs(60);
/// Outstanding tokens; both peers'.
pub(super) const MAX_TOKENS: usize = 1000;
/// Bytes of commands that outstanding tokens may hold together: a CRI message may have 16 MiB.
pub(super) const MAX_HELD_BYTES: usize = 8 << 20;
/// Bytes of one command: the kernel's limit for arguments with its default stack limit (execve(2)).
pub(super) const MAX_COMMAND_BYTES: usize = 2 << 20;

/// The request behind a token.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Ticket {
    /// Exec.
    Exec(ExecRequest),
    /// Attach.
    Attach(AttachRequest),
    /// Port-forward.
    PortForward(PortForwardRequest),
}

/// Why no token is given.
#[derive(Debug, thiserror::Error)]
pub enum TokenError {
    /// Too many calls whose clients have not connected yet.
    #[error(
        "{MAX_TOKENS} streaming requests, or {MAX_HELD_BYTES} bytes of commands, wait for their clients: try again in a minute"
    )]
    Full,
    /// A command that no kernel would run.
    #[error("command has {0} bytes, more than {MAX_COMMAND_BYTES}")]
    CommandTooLong(usize),
    /// The kernel's random source could not be read.
    #[error("make a token at random: {0}")]
    Random(std::io::Error),
}

/// Outstanding tokens.
#[derive(Debug, Clone)]
pub(super) struct Tokens {
    table: Arc<Mutex<Table>>,
    lifetime: Duration,
}

#[derive(Debug, Default)]
struct Table {
    tickets: HashMap<[u8; TOKEN_BYTES], Ticket>,
    /// In order of expiry. Used tokens stay until then, so it can be longer than the table but not than the calls of
    /// one lifetime; trimmed below.
    expiries: VecDeque<(Instant, [u8; TOKEN_BYTES])>,
    held: usize,
}

impl Ticket {
    /// The first part of the path.
    #[must_use]
    pub(super) fn kind(&self) -> &'static str {
        match self {
            Self::Exec(_) => "exec",
            Self::Attach(_) => "attach",
            Self::PortForward(_) => "portforward",
        }
    }

    fn bytes(&self) -> usize {
        match self {
            Self::Exec(exec) => exec.command.iter().map(|word| word.len() + size_of::<String>()).sum(),
            Self::Attach(_) => 0,
            Self::PortForward(forward) => size_of_val(&forward.ports[..]),
        }
    }
}

impl Default for Tokens {
    fn default() -> Self {
        Self::new(LIFETIME)
    }
}

impl Tokens {
    /// Tokens that live this long.
    #[must_use]
    pub(super) fn new(lifetime: Duration) -> Self {
        Self { table: Arc::default(), lifetime }
    }

    fn lock(&self) -> MutexGuard<'_, Table> {
        // Every section leaves it whole.
        self.table.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Makes a token for this.
    ///
    /// # Errors
    /// If too many are outstanding, or the command is too long.
    pub(super) fn issue(&self, ticket: Ticket) -> Result<String, TokenError> {
        let bytes = ticket.bytes();
        if bytes > MAX_COMMAND_BYTES {
            return Err(TokenError::CommandTooLong(bytes));
        }
        let mut token = [0; TOKEN_BYTES];
        random::fill(&mut token).map_err(TokenError::Random)?;
        let mut table = self.lock();
        let now = Instant::now();
        table.purge(now);
        if table.tickets.len() >= MAX_TOKENS || table.held + bytes > MAX_HELD_BYTES {
            return Err(TokenError::Full);
        }
        table.held += bytes;
        table.tickets.insert(token, ticket);
        table.expiries.push_back((now + self.lifetime, token));
        Ok(URL_SAFE_NO_PAD.encode(token))
    }

    /// Consumes a token, also if `kind` is not its own.
    #[must_use]
    pub(super) fn take(&self, kind: &str, token: &str) -> Option<Ticket> {
        let mut bytes = [0; TOKEN_BYTES];
        let length = URL_SAFE_NO_PAD.decode_slice(token, &mut bytes).ok()?;
        let mut table = self.lock();
        table.purge(Instant::now());
        let ticket = (length == TOKEN_BYTES).then(|| table.remove(&bytes)).flatten()?;
        (ticket.kind() == kind).then_some(ticket)
    }
}

impl Table {
    fn remove(&mut self, token: &[u8; TOKEN_BYTES]) -> Option<Ticket> {
        let ticket = self.tickets.remove(token)?;
        self.held -= ticket.bytes();
        Some(ticket)
    }

    fn purge(&mut self, now: Instant) {
        while let Some((expiry, token)) = self.expiries.front().copied()
            && (expiry <= now || !self.tickets.contains_key(&token))
        {
            self.expiries.pop_front();
            self.remove(&token);
        }
        // Used ones behind a long-lived first would accumulate.
        if self.expiries.len() > 2 * MAX_TOKENS {
            let tickets = &self.tickets;
            self.expiries.retain(|(_, token)| tickets.contains_key(token));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::HashSet;

    fn exec(word: &str) -> Ticket {
        let command = vec![word.to_owned()];
        Ticket::Exec(ExecRequest { container: "c".into(), command, stdio: Default::default() })
    }

    #[test]
    fn a_token_works_once_and_only_for_its_kind() {
        let tokens = Tokens::default();
        let token = tokens.issue(exec("a")).unwrap();
        assert_eq!(token.len(), 32);
        assert_eq!(tokens.take("exec", &token), Some(exec("a")));
        assert_eq!(tokens.take("exec", &token), None);
        let token = tokens.issue(exec("a")).unwrap();
        assert_eq!(tokens.take("attach", &token), None);
        assert_eq!(tokens.take("exec", &token), None, "used up");
    }

    #[test]
    fn an_expired_token_is_as_good_as_none_and_makes_room() {
        let tokens = Tokens::new(Duration::ZERO);
        for _ in 0..2 * MAX_TOKENS {
            let token = tokens.issue(exec("a")).unwrap();
            assert_eq!(tokens.take("exec", &token), None);
        }
        assert!(tokens.lock().expiries.is_empty() && tokens.lock().held == 0);
    }

    #[test]
    fn their_number_and_their_bytes_are_bounded() {
        let tokens = Tokens::default();
        let issued: HashSet<_> = (0..MAX_TOKENS).map(|_| tokens.issue(exec("a")).unwrap()).collect();
        assert_eq!(issued.len(), MAX_TOKENS);
        assert!(matches!(tokens.issue(exec("a")), Err(TokenError::Full)));
        for token in &issued {
            tokens.take("exec", token).unwrap();
        }
        let long = "x".repeat(MAX_COMMAND_BYTES - size_of::<String>());
        for _ in 0..4 {
            tokens.issue(exec(&long)).unwrap();
        }
        assert!(matches!(tokens.issue(exec("a")), Err(TokenError::Full)));
        assert!(matches!(tokens.issue(exec(&format!("{long}x"))), Err(TokenError::CommandTooLong(_))));
    }

    #[test]
    fn used_tokens_do_not_pile_up_behind_an_unused_one() {
        let tokens = Tokens::default();
        tokens.issue(exec("first")).unwrap();
        for _ in 0..5 * MAX_TOKENS {
            let token = tokens.issue(exec("a")).unwrap();
            tokens.take("exec", &token).unwrap();
        }
        assert!(tokens.lock().expiries.len() <= 2 * MAX_TOKENS + 1);
    }

    #[test]
    fn guesses_of_any_shape_find_nothing() {
        let tokens = Tokens::default();
        let token = tokens.issue(exec("a")).unwrap();
        for guess in [
            "",
            "a",
            "====",
            "../../etc",
            &token[..31],
            &format!("{token}A"),
            &"A".repeat(32),
            &"A".repeat(9999),
        ] {
            assert_eq!(tokens.take("exec", guess), None, "{guess}");
        }
        assert!(tokens.take("exec", &token).is_some());
    }
}
