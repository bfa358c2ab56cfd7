//! SELinux around a pod: its level, whether the policy knows what was asked for, labels on its files and volumes. Which
//! labels those are is `spec`'s to say.

use super::files::PodFiles;
use super::node::Node;
use crate::config::annotation_fits;
use crate::host::security::selinux::{self, Known, Label, SelinuxError};
use crate::model::{ContainerSecurity, ContainerSpec, Mount, NamespaceMode, SandboxSpec};
use crate::sandbox::offload::OffThread;
use crate::sandbox::spec::selinux_labels;
use crate::sandbox::words::error::SandboxError;
use crate::sandbox::words::snapshot::PodSnapshot;
use std::path::Path;

/// The fields of a request, and the part of a label that each is.
const FIELDS: [(&str, Part); 4] = [
    ("config.linux.security_context.selinux_options.type", |label| &mut label.kind),
    ("config.linux.security_context.selinux_options.level", |label| &mut label.level),
    ("config.linux.security_context.selinux_options.role", |label| &mut label.role),
    ("config.linux.security_context.selinux_options.user", |label| &mut label.user),
];
type Part = fn(&mut Label) -> &mut String;

/// CRI-O's annotations of pods whose volumes are labelled already if their roots are, the newer first.
const TRY_SKIP: [&str; 2] =
    ["try-skip-volume-selinux-label.crio.io", "io.kubernetes.cri-o.TrySkipVolumeSELinuxLabel"];

/// Whether the policy knows the labels that a container, or a pod's containers, would get.
pub(in crate::sandbox) fn check(
    node: &Node,
    pod: &SandboxSpec,
    container: Option<&ContainerSecurity>,
) -> Result<(), SandboxError> {
    let Some(selinux) = &node.selinux else { return Ok(()) };
    let labels = selinux_labels(selinux.contexts(), pod, container);
    let known = |label: &Label| selinux.canonical(label).map(drop);
    let Some(process) = &labels.process else { return Ok(known(&labels.mount)?) };
    match known(process).and_then(|()| known(&labels.mount)) {
        Err(cause @ SelinuxError::Unknown { .. }) => {
            let field = at_fault(process, &selinux.contexts().process, |label| known(label).is_ok());
            Err(SandboxError::SelinuxLabel { field, cause })
        }
        checked => Ok(checked?),
    }
}

/// The field without which the label would be one.
fn at_fault(label: &Label, default: &Label, is_known: impl Fn(&Label) -> bool) -> &'static str {
    let fault = FIELDS.into_iter().find(|(_, part)| {
        let mut mended = label.clone();
        part(&mut mended).clone_from(part(&mut default.clone()));
        is_known(&mended)
    });
    fault.map_or("config.linux.security_context.selinux_options", |(field, _)| field)
}

/// The level of a new pod: what it asks for, or one that none of the `others` has. None where there are no levels.
pub(in crate::sandbox) fn level<'a>(
    node: &Node,
    pod: &SandboxSpec,
    others: impl Iterator<Item = &'a PodSnapshot>,
) -> Result<Option<String>, SandboxError> {
    let Some(selinux) = &node.selinux else { return Ok(None) };
    let asked = pod.security.selinux.as_ref().map(|asked| &asked.level).filter(|level| !level.is_empty());
    if let Some(level) = asked {
        return Ok(Some(level.clone()));
    }
    if selinux.contexts().process.level.is_empty() {
        return Ok(None);
    }
    let taken = others.flat_map(levels).collect::<std::collections::HashSet<_>>();
    Ok(Some(selinux::unused(|level| taken.contains(level))?))
}

/// The levels of a pod and its containers.
fn levels(pod: &PodSnapshot) -> Vec<String> {
    let own = pod.containers.iter().filter_map(|c| c.spec.security.selinux.as_ref());
    let own = own.map(|asked| asked.level.clone()).filter(|level| !level.is_empty());
    pod.spec.selinux_level.iter().cloned().chain(own).collect()
}

/// Labels the files that a pod's containers share. Blocking.
pub(in crate::sandbox) fn label_pod_files(
    _: &OffThread,
    node: &Node,
    pod: &SandboxSpec,
) -> Result<(), SandboxError> {
    let Some(selinux) = &node.selinux else { return Ok(()) };
    let label = selinux.canonical(&selinux_labels(selinux.contexts(), pod, None).mount)?;
    put_on_pod_files(node, pod, &label)
}

fn put_on_pod_files(node: &Node, pod: &SandboxSpec, label: &str) -> Result<(), SandboxError> {
    let files = PodFiles::below(&node.places.pod_dir(&pod.id));
    for file in [&files.hostname, &files.hosts, &files.resolv_conf] {
        selinux::label_file(file, label)?;
    }
    if pod.namespaces.ipc != NamespaceMode::Node {
        selinux::label_file(&files.shm, label)?;
    }
    Ok(())
}

/// Whether a container's volumes are to be labelled.
pub(in crate::sandbox) fn relabels(node: &Node, pod: &SandboxSpec, container: &ContainerSpec) -> bool {
    node.selinux
        .as_ref()
        .is_some_and(|selinux| selinux_labels(selinux.contexts(), pod, Some(&container.security)).relabels)
}

/// Labels a volume, whose path on the host has no symlink. Blocking, for as long as it is large; may be repeated, and
/// goes on where it was. `moves` is called again and again.
pub(in crate::sandbox) fn label_volume(
    node: &Node,
    pod: &SandboxSpec,
    container: &ContainerSpec,
    mount: &Mount,
    source: &Path,
    moves: &dyn Fn(),
) -> Result<(), SandboxError> {
    let Some(selinux) = &node.selinux else { return Ok(()) };
    let labels = selinux_labels(selinux.contexts(), pod, Some(&container.security));
    let label = selinux.canonical(&labels.mount)?;
    let known = if tries_to_skip(node, pod) { Known::Tree } else { Known::Root };
    selinux::relabel(source, &label, known, moves)
        .map_err(|cause| SandboxError::Relabel { container_path: mount.container_path.clone(), cause })
}

/// Labels the pod's files for a container, if its level is another one than theirs: containers of different levels can
/// share only what has no category. Blocking.
pub(in crate::sandbox) fn share_pod_files(
    _: &OffThread,
    node: &Node,
    pod: &SandboxSpec,
    container: &ContainerSpec,
) -> Result<(), SandboxError> {
    let Some(selinux) = &node.selinux else { return Ok(()) };
    let contexts = selinux.contexts();
    let level = selinux_labels(contexts, pod, Some(&container.security)).mount.level;
    if level == selinux_labels(contexts, pod, None).mount.level {
        return Ok(());
    }
    put_on_pod_files(node, pod, &selinux.canonical(&contexts.file)?)
}

fn tries_to_skip(node: &Node, pod: &SandboxSpec) -> bool {
    let allowed = node.handlers.settings_of(&pod.runtime_handler).pod_annotations;
    TRY_SKIP.into_iter().any(|name| {
        let asked = pod.annotations.get(name).is_some_and(|value| value == "true");
        asked && allowed.iter().any(|pattern| annotation_fits(pattern, name))
    })
}

/// The option with which a file system of a container's is mounted, that all of its files have the container's label.
pub(in crate::sandbox) fn mount_option(
    node: &Node,
    pod: &SandboxSpec,
    container: &ContainerSpec,
) -> Option<String> {
    let contexts = node.selinux.as_ref()?.contexts();
    Some(format!("context={}", selinux_labels(contexts, pod, Some(&container.security)).mount))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_field_at_fault_is_named() {
        let default = Label::parse("system_u:system_r:container_t:s0").unwrap();
        let known = |label: &Label| {
            label.user == "system_u"
                && label.role == "system_r"
                && ["container_t", "spc_t"].contains(&label.kind.as_str())
                && !label.level.contains("c5000")
        };
        for (text, field) in [
            ("system_u:system_r:nonsense_t:s0", ".type"),
            ("system_u:system_r:spc_t:s0:c5000", ".level"),
            ("system_u:nobody_r:spc_t:s0", ".role"),
            ("nobody_u:system_r:spc_t:s0", ".user"),
            ("nobody_u:nobody_r:spc_t:s0", "selinux_options"),
        ] {
            let label = Label::parse(text).unwrap();
            assert!(!known(&label));
            assert!(at_fault(&label, &default, known).ends_with(field), "{text}");
        }
    }
}
