//! The generated CRI v1 types. They stop at `cri`: nothing below it names them.
#![allow(missing_debug_implementations, unreachable_pub, clippy::all, clippy::pedantic)]

tonic::include_proto!("runtime.v1");
pub use super::lists::{ListContainersResponse, ListPodSandboxResponse};

impl std::fmt::Debug for AuthConfig {
    /// The user, never the credentials.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("AuthConfig")
            .field("username", &self.username)
            .field("server_address", &self.server_address)
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_request_that_is_printed_keeps_its_secrets() {
        let secret = || "s3cret".to_owned();
        let auth = AuthConfig {
            username: "alice".to_owned(),
            password: secret(),
            auth: secret(),
            identity_token: secret(),
            registry_token: secret(),
            ..Default::default()
        };
        let printed = format!("{:?}", PullImageRequest { auth: Some(auth), ..Default::default() });
        assert!(printed.contains("alice") && !printed.contains("s3cret"), "{printed}");
    }
}
