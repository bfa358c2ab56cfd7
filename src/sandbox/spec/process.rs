//! The process: arguments, environment, directory, user, rights.

use super::capabilities::{self, ContainerCapabilities};
use super::{HostFacts, Inputs, SpecError, size};
use crate::config::Ulimit;
use crate::model::{ContainerSecurity, ContainerSpec, Profile};
use oci_spec::runtime::{
    PosixRlimit, PosixRlimitBuilder, PosixRlimitType, Process, ProcessBuilder, UserBuilder,
};
use std::collections::HashMap;
use std::path::{Component, Path, PathBuf};

/// PATH of an image that sets none (Docker's default).
const DEFAULT_PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

pub(super) fn build(inputs: &Inputs<'_>, caps: &ContainerCapabilities) -> Result<Process, SpecError> {
    let security = &inputs.container.security;
    let user = UserBuilder::default()
        .uid(inputs.user.uid)
        .gid(inputs.user.gid)
        .additional_gids(groups(inputs))
        .build()?;
    let (args, env) = (args(inputs)?, env(inputs)?);
    size::check_process(&args, &env)?;
    let mut process = ProcessBuilder::default()
        .terminal(inputs.container.tty)
        .user(user)
        .args(args)
        .env(env)
        .cwd(cwd(inputs)?)
        .capabilities(capabilities::oci(caps))
        .oom_score_adj(oom_score_adj(inputs)?)
        .build()?;
    process
        // False is omitted: youki loads a seccomp profile too late if the field is present.
        .set_no_new_privileges(security.no_new_privs.then_some(true))
        .set_rlimits(rlimits(&inputs.config.default_ulimits)?)
        .set_apparmor_profile(apparmor(security, inputs.host)?)
        .set_selinux_label(inputs.selinux().and_then(|labels| labels.process).map(|label| label.to_string()));
    Ok(process)
}

/// Checks of the process before its image is read.
pub(super) fn check(container: &ContainerSpec, host: &HostFacts) -> Result<(), SpecError> {
    apparmor(&container.security, host)?;
    working_dir(&container.working_dir)?;
    size::check_request(container)?;
    match container.envs.iter().find(|(name, _)| name.is_empty() || name.contains('=')) {
        Some((name, _)) => Err(SpecError::EnvName { name: name.chars().take(80).collect() }),
        None => Ok(()),
    }
}

/// None leaves those that the OCI runtime itself has.
fn rlimits(limits: &[String]) -> Result<Option<Vec<PosixRlimit>>, SpecError> {
    let one = |text: &String| {
        let wrong = |reason| SpecError::Ulimit { text: text.clone(), reason };
        let limit = Ulimit::parse(text).map_err(wrong)?;
        let kind = serde_json::Value::String(limit.name.clone());
        let kind: PosixRlimitType = serde_json::from_value(kind).map_err(|e| wrong(e.to_string()))?;
        Ok(PosixRlimitBuilder::default().typ(kind).soft(limit.soft).hard(limit.hard).build()?)
    };
    let limits = limits.iter().map(one).collect::<Result<Vec<_>, SpecError>>()?;
    Ok(Some(limits).filter(|limits| !limits.is_empty()))
}

fn groups(inputs: &Inputs<'_>) -> Vec<u32> {
    let mut groups = inputs.user.additional_gids.clone();
    for gid in &inputs.cdi.additional_gids {
        // 0 is no group that a device gives.
        if *gid != 0 && !groups.contains(gid) {
            groups.push(*gid);
        }
    }
    groups
}

/// command and args of the request replace the image's Entrypoint and Cmd; args alone replace Cmd.
fn args(inputs: &Inputs<'_>) -> Result<Vec<String>, SpecError> {
    let (container, image) = (inputs.container, inputs.image);
    let (first, second) = match (container.command.is_empty(), container.args.is_empty()) {
        (false, _) => (&container.command, &container.args),
        (true, false) => (&image.entrypoint, &container.args),
        (true, true) => (&image.entrypoint, &image.cmd),
    };
    let args: Vec<String> = first.iter().chain(second).cloned().collect();
    if args.first().is_none_or(String::is_empty) {
        return Err(SpecError::NoCommand);
    }
    match args.iter().find(|arg| arg.contains('\0')) {
        Some(arg) => Err(SpecError::Nul { what: "argument", value: arg.chars().take(80).collect() }),
        None => Ok(args),
    }
}

/// The image's variables, then ours, then the request's; a later one replaces an earlier of the same name in place.
/// HOME is left to the OCI runtime, which reads the container's passwd file.
fn env(inputs: &Inputs<'_>) -> Result<Vec<String>, SpecError> {
    let mut all: Vec<(String, String)> = Vec::new();
    // An image may have hundreds of thousands.
    let mut places: HashMap<String, usize> = HashMap::new();
    let mut put = |name: &str, value: &str| match places.get(name).and_then(|at| all.get_mut(*at)) {
        Some((_, old)) => value.clone_into(old),
        None => {
            places.insert(name.to_owned(), all.len());
            all.push((name.to_owned(), value.to_owned()));
        }
    };
    put("PATH", DEFAULT_PATH);
    // An entry without "=" sets nothing.
    for (name, value) in inputs.image.env.iter().filter_map(|entry| entry.split_once('=')) {
        if !name.is_empty() {
            put(name, value);
        }
    }
    if !inputs.sandbox.hostname.is_empty() {
        put("HOSTNAME", &inputs.sandbox.hostname);
    }
    if inputs.container.tty {
        put("TERM", "xterm");
    }
    for (name, value) in &inputs.container.envs {
        if name.is_empty() || name.contains('=') {
            return Err(SpecError::EnvName { name: name.chars().take(80).collect() });
        }
        put(name, value);
    }
    for (name, value) in inputs.cdi.env.iter().filter_map(|entry| entry.split_once('=')) {
        put(name, value);
    }
    // Only the name is shown: values are secrets.
    match all.iter().find(|(name, value)| name.contains('\0') || value.contains('\0')) {
        Some((name, _)) => Err(SpecError::Nul { what: "environment variable", value: name.clone() }),
        None => Ok(all.into_iter().map(|(name, value)| format!("{name}={value}")).collect()),
    }
}

fn cwd(inputs: &Inputs<'_>) -> Result<PathBuf, SpecError> {
    let asked =
        [&inputs.container.working_dir, &inputs.image.working_dir].into_iter().find(|dir| !dir.is_empty());
    asked.map_or_else(|| Ok("/".into()), |asked| working_dir(asked))
}

fn working_dir(asked: &str) -> Result<PathBuf, SpecError> {
    if asked.contains('\0') {
        return Err(SpecError::Nul { what: "working directory", value: asked.to_owned() });
    }
    let mut path = PathBuf::from("/");
    for component in Path::new(asked).components() {
        match component {
            Component::Normal(part) => path.push(part),
            Component::ParentDir => {
                path.pop();
            }
            Component::RootDir | Component::CurDir | Component::Prefix(_) => {}
        }
    }
    if path.starts_with("/proc") && path.components().any(|c| c.as_os_str() == "fd") {
        return Err(SpecError::WorkingDir { path: asked.to_owned() });
    }
    Ok(path)
}

fn oom_score_adj(inputs: &Inputs<'_>) -> Result<i32, SpecError> {
    let asked = inputs.container.resources.oom_score_adj;
    if !(-1000..=1000).contains(&asked) {
        return Err(SpecError::Resource {
            field: "oom_score_adj",
            value: asked.to_string(),
            reason: "must be from -1000 to 1000",
        });
    }
    let given = asked.max(inputs.host.oom_score_adj_floor).min(1000);
    i32::try_from(given).map_err(|_| SpecError::Resource {
        field: "oom_score_adj",
        value: given.to_string(),
        reason: "must be from -1000 to 1000",
    })
}

/// The AppArmor profile of a container. By default the default profile; a privileged container gets only what it names.
///
/// # Errors
/// If one is requested by name or as the default, and the host has no AppArmor, or there is no default.
pub fn apparmor(security: &ContainerSecurity, host: &HostFacts) -> Result<Option<String>, SpecError> {
    match &security.apparmor {
        Some(Profile::Unconfined) => Ok(host.apparmor.then(|| "unconfined".to_owned())),
        Some(Profile::Localhost(name)) if host.apparmor => {
            Ok(Some(name.strip_prefix("localhost/").unwrap_or(name).to_owned()))
        }
        Some(Profile::Localhost(name)) => Err(SpecError::NoAppArmor { profile: name.clone() }),
        Some(Profile::RuntimeDefault) if security.privileged => Ok(None),
        Some(Profile::RuntimeDefault) => match (&host.apparmor_default, host.apparmor) {
            (Some(name), true) => Ok(Some(name.clone())),
            _ => Err(SpecError::NoAppArmor { profile: "runtime/default".to_owned() }),
        },
        None if security.privileged || !host.apparmor => Ok(None),
        None => Ok(host.apparmor_default.clone()),
    }
}
