//! `images rm`.

use super::connection::Client;
use super::error::CliError;
use super::{out, text};
use crate::admin::proto as pb;

/// Removes one after the other; a failure is reported and does not stop the others.
pub(super) async fn run(client: &mut Client, names: Vec<String>) -> Result<(), CliError> {
    let mut failed = false;
    for name in names {
        match client.remove(pb::RemoveRequest { name }).await {
            Ok(answer) => out::line(&told(&answer.into_inner())),
            Err(status) => {
                out::error(status.message());
                failed = true;
            }
        }
    }
    if failed { Err(CliError::Told) } else { Ok(()) }
}

fn told(answer: &pb::RemoveResponse) -> String {
    let names =
        if answer.names.is_empty() { String::new() } else { format!(" ({})", answer.names.join(", ")) };
    let then = match answer.containers {
        0 => format!("freed {}", text::bytes(answer.freed_bytes)),
        number => {
            let containers = text::count(usize::try_from(number).unwrap_or(usize::MAX), "container");
            format!("in use by {containers}, its layers go with the last one")
        }
    };
    format!("removed {}{names}: {then}", answer.id)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_became_of_the_layers_is_told() {
        let mut answer = pb::RemoveResponse {
            id: "sha256:a".into(),
            names: vec!["x:1".into(), "x:2".into()],
            containers: 0,
            freed_bytes: 1000,
        };
        assert_eq!(told(&answer), "removed sha256:a (x:1, x:2): freed 1.0 kB");
        answer.containers = 1;
        answer.names.clear();
        assert_eq!(told(&answer), "removed sha256:a: in use by 1 container, its layers go with the last one");
    }
}
