//! How a session's end is reported to its client: a metav1.Status, or text for old protocols.

use super::backend::Ended;
use crate::sandbox::SandboxError;
use serde_json::json;

/// How a session ended, as its client should see it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Verdict {
    Success,
    ExitCode(i32),
    Failure(String),
}

/// The message to a client when the daemon ends before the session.
pub(super) const ENDING: &str = "podwright is being stopped or restarted; the container runs on";

impl Verdict {
    pub(super) fn of(outcome: Result<Ended, SandboxError>) -> Self {
        match outcome {
            Ok(Ended::Exited(0) | Ended::ContainerEnded) => Self::Success,
            Ok(Ended::Exited(code)) => Self::ExitCode(code),
            Ok(Ended::TooSlow) => {
                Self::Failure("the client read too slowly; the container's log has the rest".to_owned())
            }
            Err(error) => Self::Failure(error.to_string()),
        }
    }

    /// The bytes for the error stream; none where an empty stream means success.
    pub(super) fn bytes(&self, status: bool) -> Vec<u8> {
        match (self, status) {
            (Self::Success, false) => Vec::new(),
            (Self::Success, true) => json!({"metadata": {}, "status": "Success"}).to_string().into_bytes(),
            (Self::ExitCode(code), false) => {
                format!("command terminated with non-zero exit code: {code}").into_bytes()
            }
            // Clients look for exactly these reasons and parse the message as a number.
            (Self::ExitCode(code), true) => json!({
                "metadata": {},
                "status": "Failure",
                "message": format!("command terminated with non-zero exit code: {code}"),
                "reason": "NonZeroExitCode",
                "details": {"causes": [{"reason": "ExitCode", "message": code.to_string()}]},
            })
            .to_string()
            .into_bytes(),
            (Self::Failure(message), false) => message.clone().into_bytes(),
            (Self::Failure(message), true) => json!({
                "metadata": {},
                "status": "Failure",
                "message": format!("Internal error occurred: {message}"),
                "reason": "InternalError",
                "code": 500,
            })
            .to_string()
            .into_bytes(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn statuses_are_those_that_clients_parse() {
        let json =
            |verdict: Verdict| -> serde_json::Value { serde_json::from_slice(&verdict.bytes(true)).unwrap() };
        assert_eq!(json(Verdict::of(Ok(Ended::Exited(0))))["status"], "Success");
        assert_eq!(json(Verdict::of(Ok(Ended::ContainerEnded)))["status"], "Success");
        let exit = json(Verdict::of(Ok(Ended::Exited(137))));
        assert_eq!(exit["reason"], "NonZeroExitCode");
        assert_eq!(exit["details"]["causes"][0], json!({"reason": "ExitCode", "message": "137"}));
        assert_eq!(exit.get("code"), None);
        let failure = json(Verdict::Failure("x \"y\"".into()));
        assert_eq!(failure["message"], "Internal error occurred: x \"y\"");
        assert_eq!(failure["code"], 500);
        assert!(Verdict::Success.bytes(false).is_empty());
        assert_eq!(Verdict::ExitCode(3).bytes(false), b"command terminated with non-zero exit code: 3");
        assert_eq!(Verdict::Failure("x".into()).bytes(false), b"x");
    }
}
