//! What pods and containers take in the lists that tell all of them. A list is one message: one object too many, and the
//! kubelet can list none. Statistics of pods tell all pods and all containers in one message, so both are counted together.
//! Pure.

use super::error::SandboxError;
use crate::model::{ContainerSpec, SandboxSpec};
use std::collections::BTreeMap;

/// What is small fits as long as anything does: with it, thousands of pods and containers fit the rest of a message.
const SMALL: usize = 8 << 10;
/// What an entry of a map takes beside its text: three tags and three lengths.
const ENTRY_BYTES: usize = 14;
/// What an object takes in any list beside its text: ids, times, states, and the figures of statistics.
const FIXED_BYTES: usize = 1 << 10;
/// What a pod's statistics take beside that: its network devices, of which there are
/// [`MAX_DEVICES`](crate::host::interfaces::MAX_DEVICES).
const DEVICES_BYTES: usize = crate::host::interfaces::MAX_DEVICES * 96;
/// A pod's containers may take this part of a message.
const POD_PART: usize = 4;

/// What one object takes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::sandbox) struct Weight(usize);

fn weigh(
    fixed: usize,
    texts: &[&str],
    labels: &BTreeMap<String, String>,
    annotations: &BTreeMap<String, String>,
) -> Weight {
    let maps = labels.iter().chain(annotations).map(|(key, value)| key.len() + value.len() + ENTRY_BYTES);
    Weight(fixed + texts.iter().map(|text| text.len()).sum::<usize>() + maps.sum::<usize>())
}

/// A pod's.
pub(in crate::sandbox) fn pod(spec: &SandboxSpec) -> Weight {
    let name = &spec.name;
    let texts = [&name.name, &name.uid, &name.namespace, &spec.runtime_handler];
    weigh(FIXED_BYTES + DEVICES_BYTES, &texts.map(String::as_str), &spec.labels, &spec.annotations)
}

/// A container's.
pub(in crate::sandbox) fn container(spec: &ContainerSpec) -> Weight {
    let image = &spec.image;
    let texts = [&spec.name, &image.display, &image.user_specified, &image.reference];
    weigh(FIXED_BYTES, &texts.map(String::as_str), &spec.labels, &spec.annotations)
}

/// Whether one more object of `kind` can be listed beside all others, pods and containers, in a message of `limit` bytes.
/// Of it three quarters are for what is not small, and a quarter is all that one pod's containers, `of_pod`, may have.
///
/// # Errors
/// When it cannot.
pub(in crate::sandbox) fn check(
    kind: &'static str,
    new: Weight,
    of_pod: impl Iterator<Item = Weight>,
    others: impl Iterator<Item = Weight>,
    limit: usize,
) -> Result<(), SandboxError> {
    let Weight(new) = new;
    let refuse = |whose, all, most| Err(SandboxError::TooLongToList { kind, whose, all, most });
    let own = of_pod.fold(new, |sum, Weight(bytes)| sum.saturating_add(bytes));
    if own > limit / POD_PART {
        return refuse("of this pod", own, limit / POD_PART);
    }
    let (mut all, mut large) = (new, new);
    for Weight(bytes) in others {
        all = all.saturating_add(bytes);
        if bytes > SMALL {
            large = large.saturating_add(bytes);
        }
    }
    if new > SMALL && large > limit / 4 * 3 {
        return refuse("of all pods, if they are large,", large, limit / 4 * 3);
    }
    if all > limit { refuse("of all pods", all, limit) } else { Ok(()) }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIMIT: usize = 16 << 20;

    fn judge(new: usize, others: impl Iterator<Item = usize>) -> Result<(), SandboxError> {
        check("pods", Weight(new), std::iter::empty(), others.map(Weight), LIMIT)
    }

    #[test]
    fn what_no_list_could_tell_is_refused_and_small_ones_fit_as_long_as_any() {
        let quarter_mib = |count| std::iter::repeat_n(256 << 10, count);
        assert!(judge(256 << 10, quarter_mib(47)).is_ok());
        let refused = judge(256 << 10, quarter_mib(48)).unwrap_err().to_string();
        assert!(refused.contains("pods") && refused.contains("12582912"), "{refused}");
        // Some hundred of these are in the last quarter, and no large one takes it.
        assert!(judge(SMALL, quarter_mib(48).chain([SMALL; 400])).is_ok());
        // But small ones without end are refused, too.
        let refused = judge(SMALL, quarter_mib(48).chain([SMALL; 1000])).unwrap_err().to_string();
        assert!(refused.contains("16777216"), "{refused}");
    }

    #[test]
    fn a_pods_containers_have_a_part_of_a_list() {
        let of_pod = |count| std::iter::repeat_n(Weight(2 << 10), count);
        let judge = |count| check("containers", Weight(2 << 10), of_pod(count), of_pod(count), LIMIT);
        assert!(judge(2047).is_ok());
        let refused = judge(2048).unwrap_err().to_string();
        assert!(refused.contains("of this pod"), "{refused}");
    }
}
