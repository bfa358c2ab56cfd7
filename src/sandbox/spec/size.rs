//! How large the specification of a container and of its process may be. It lies in the daemon's `state`, which is memory
//! of the node and charged to no container, so that more than is of use is refused. Pure.

use super::SpecError;
use crate::model::ContainerSpec;
use oci_spec::runtime::Spec;

/// Arguments and environment of a process: what Linux takes at most with the usual stack of 8 MiB (a quarter of it, each
/// string with its pointer, execve(2)). More is of no use to anybody.
pub const MAX_PROCESS_BYTES: usize = 2 << 20;
/// An encoded OCI configuration. Real ones have some 20 KiB, with the environment of thousands of services some hundred.
pub const MAX_CONFIG_BYTES: usize = 4 << 20;
/// Of a pointer and of the NUL at a string's end.
const STRING_BYTES: usize = 8 + 1;

fn bytes<'a>(words: impl Iterator<Item = &'a String>) -> usize {
    words.map(|word| word.len() + STRING_BYTES).sum()
}

fn bounded(what: &'static str, bytes: usize) -> Result<(), SpecError> {
    if bytes > MAX_PROCESS_BYTES { Err(SpecError::ProcessTooLarge { what, bytes }) } else { Ok(()) }
}

/// The request's part alone.
pub(super) fn check_request(container: &ContainerSpec) -> Result<(), SpecError> {
    let words = bytes(container.command.iter().chain(&container.args));
    let envs: usize =
        container.envs.iter().map(|(name, value)| name.len() + 1 + value.len() + STRING_BYTES).sum();
    bounded("config.command, config.args and config.envs", words + envs)
}

/// All of a container's process, the image's part included.
pub(super) fn check_process(args: &[String], env: &[String]) -> Result<(), SpecError> {
    let what = "config.command, config.args, config.envs and what the image adds to them";
    bounded(what, bytes(args.iter().chain(env)))
}

/// The words of a command for a running container.
///
/// # Errors
/// When they are more than any process can have.
pub fn check_command(cmd: &[String]) -> Result<(), SpecError> {
    bounded("the words of cmd", bytes(cmd.iter()))
}

/// The configuration as the runtime reads it.
///
/// # Errors
/// When it is too large, or cannot be written.
pub fn encode(spec: &Spec) -> Result<Vec<u8>, SpecError> {
    let text = serde_json::to_vec(spec).map_err(oci_spec::OciSpecError::from)?;
    if text.len() <= MAX_CONFIG_BYTES {
        return Ok(text);
    }
    let length = |part: Result<Vec<u8>, serde_json::Error>| part.map_or(0, |text| text.len());
    let parts = [
        ("the process", length(serde_json::to_vec(spec.process()))),
        ("mounts", length(serde_json::to_vec(spec.mounts()))),
        ("annotations", length(serde_json::to_vec(spec.annotations()))),
        ("devices, masked paths and what else is in linux", length(serde_json::to_vec(spec.linux()))),
    ];
    let (largest, largest_bytes) = parts.into_iter().max_by_key(|(_, bytes)| *bytes).unwrap_or_default();
    Err(SpecError::ConfigTooLarge { bytes: text.len(), largest, largest_bytes })
}

#[cfg(test)]
mod tests {
    use super::*;
    use oci_spec::runtime::{ProcessBuilder, SpecBuilder};

    #[test]
    fn what_no_program_could_be_executed_with_is_refused() {
        let words = |count: usize| vec!["x".repeat(100 - STRING_BYTES); count];
        let most = MAX_PROCESS_BYTES / 100;
        check_process(&words(10), &words(most - 10)).unwrap();
        let refused = check_process(&words(10), &words(most)).unwrap_err().to_string();
        assert!(refused.contains("config.envs") && refused.contains("2097152"), "{refused}");
        // Each takes its pointer, however short it is.
        check_command(&vec![String::new(); MAX_PROCESS_BYTES / STRING_BYTES]).unwrap();
        assert!(check_command(&vec![String::new(); MAX_PROCESS_BYTES / STRING_BYTES + 1]).is_err());
    }

    #[test]
    fn a_configuration_that_is_too_large_names_what_makes_it_so() {
        let of = |env: String| {
            let process = ProcessBuilder::default().env(vec![env]).build().unwrap();
            encode(&SpecBuilder::default().process(process).build().unwrap())
        };
        of("A=b".into()).unwrap();
        // A control character takes six bytes of JSON.
        let refused = of(format!("A={}", "\u{1}".repeat(MAX_CONFIG_BYTES / 6))).unwrap_err();
        let SpecError::ConfigTooLarge { largest, .. } = refused else { panic!("{refused}") };
        assert_eq!(largest, "the process");
    }
}
