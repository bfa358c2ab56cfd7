//! Credentials of a pull, from an argument, standard input or the terminal. Never shown again.

use super::error::CliError;
use crate::admin::proto as pb;
use rustix::termios::{LocalModes, OptionalActions, tcgetattr, tcsetattr};
use std::io::{IsTerminal as _, Read as _};

/// A line with a user name and a password; tokens of cloud registries are a few KiB.
const MAX_LINE: u64 = 64 << 10;

/// The values of `--creds` and `--creds-stdin`.
pub(super) fn read(given: Option<&str>, stdin: bool) -> Result<Option<pb::Credentials>, CliError> {
    let text = match (given, stdin) {
        (_, true) => line()?,
        (Some(given), false) if given.contains(':') => given.to_owned(),
        (Some(user), false) => format!("{user}:{}", ask(user)?),
        (None, false) => return Ok(None),
    };
    parse(&text).map(Some)
}

fn parse(text: &str) -> Result<pb::Credentials, CliError> {
    match text.split_once(':') {
        Some((username, password)) if !username.is_empty() => {
            Ok(pb::Credentials { username: username.to_owned(), password: password.to_owned() })
        }
        _ => Err(CliError::Credentials("they are not USER:PASS".into())),
    }
}

fn line() -> Result<String, CliError> {
    let mut text = String::new();
    let read = std::io::stdin().lock().take(MAX_LINE).read_to_string(&mut text);
    read.map_err(|e| CliError::Credentials(format!("read standard input: {e}")))?;
    Ok(text.trim_end_matches(['\n', '\r']).to_owned())
}

fn ask(user: &str) -> Result<String, CliError> {
    let stdin = std::io::stdin();
    if !stdin.is_terminal() {
        return Err(CliError::Credentials(format!(
            "no password for {user:?}: give USER:PASS, or --creds-stdin"
        )));
    }
    let failed = |e: std::io::Error| CliError::Credentials(format!("ask for the password: {e}"));
    super::out::note(&format!("Password of {user}:"));
    let seen = tcgetattr(&stdin).map_err(|e| failed(e.into()))?;
    let mut unseen = seen.clone();
    unseen.local_modes.remove(LocalModes::ECHO);
    tcsetattr(&stdin, OptionalActions::Flush, &unseen).map_err(|e| failed(e.into()))?;
    let mut text = String::new();
    let read = stdin.read_line(&mut text);
    // Restores the terminal in any case.
    tcsetattr(&stdin, OptionalActions::Flush, &seen).map_err(|e| failed(e.into()))?;
    read.map_err(failed)?;
    Ok(text.trim_end_matches(['\n', '\r']).to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_password_may_have_colons_and_a_user_may_not_be_empty() {
        let found = parse("alice:a:b").unwrap();
        assert_eq!((found.username.as_str(), found.password.as_str()), ("alice", "a:b"));
        assert!(parse("alice").is_err() && parse(":x").is_err() && parse("").is_err());
        assert!(!format!("{found:?}").contains("a:b"));
        assert!(read(None, false).unwrap().is_none());
    }
}
