//! Arguments of a pod's attachment for plugins: CNI_ARGS and capability arguments. Pure.

use super::{Attachment, NetworkError};
use crate::model::Protocol;
use serde_json::{Map, Value, json};

/// Key of CNI_ARGS that holds the sandbox id.
pub(super) const SANDBOX_KEY: &str = "K8S_POD_INFRA_CONTAINER_ID";
/// Annotations that limit a pod's bandwidth, with the names of their rate and burst in the capability.
const BANDWIDTH: [(&str, &str, &str); 2] = [
    ("kubernetes.io/ingress-bandwidth", "ingressRate", "ingressBurst"),
    ("kubernetes.io/egress-bandwidth", "egressRate", "egressBurst"),
];
/// Rates that Kubernetes accepts, bits per second: 1k to 1P (pkg/util/bandwidth).
const RATES: std::ops::RangeInclusive<f64> = 1e3..=1e15;
/// Burst in bits: no limit of its own, as go-cni.
const BURST: u64 = u32::MAX as u64;
/// The capability that maps host ports.
pub(super) const PORT_MAPPINGS: &str = "portMappings";

/// Whether CNI_ARGS can hold this value: plugins split at `;`, then at each `=`, and refuse an excess one.
pub(super) fn is_passable(value: &str) -> bool {
    !value.contains([';', '=', '\0'])
}

/// CNI_ARGS as pairs. IgnoreUnknown comes first: it keeps plugins from refusing the others.
///
/// # Errors
/// When a name cannot be passed.
pub(super) fn cni_args(request: &Attachment) -> Result<Vec<[String; 2]>, NetworkError> {
    let args = all_args(request);
    match args.iter().find(|[_, value]| !is_passable(value)) {
        Some([what, value]) => Err(NetworkError::Argument {
            pod: request.pod.to_string(),
            what: what.clone(),
            value: value.clone(),
        }),
        None => Ok(args),
    }
}

/// The same for DEL, which must work for every existing pod: omits what cannot be passed. The sandbox's id, by which
/// plugins find what to remove, always can.
pub(super) fn cni_args_to_detach(request: &Attachment) -> Vec<[String; 2]> {
    all_args(request).into_iter().filter(|[_, value]| is_passable(value)).collect()
}

fn all_args(request: &Attachment) -> Vec<[String; 2]> {
    let pod = &request.pod;
    let named = [
        ("K8S_POD_NAMESPACE", pod.namespace.as_str()),
        ("K8S_POD_NAME", pod.name.as_str()),
        (SANDBOX_KEY, request.sandbox.as_str()),
        ("K8S_POD_UID", pod.uid.as_str()),
    ];
    let mut args = vec![["IgnoreUnknown".to_owned(), "1".to_owned()]];
    args.extend(named.map(|(what, value)| [what.to_owned(), value.to_owned()]));
    args
}

/// All capability arguments for this pod; a plugin gets those that it declares.
pub(super) fn capability_args(request: &Attachment) -> Result<Map<String, Value>, NetworkError> {
    let mut args = Map::new();
    if !request.port_mappings.is_empty() {
        let mappings = request.port_mappings.iter().map(|mapping| {
            let protocol = match mapping.protocol {
                Protocol::Tcp => "tcp",
                Protocol::Udp => "udp",
                Protocol::Sctp => "sctp",
            };
            let mut entry = json!({
                "hostPort": mapping.host_port, "containerPort": mapping.container_port, "protocol": protocol,
            });
            if let Some(ip) = mapping.host_ip {
                entry["hostIP"] = ip.to_string().into();
            }
            entry
        });
        args.insert(PORT_MAPPINGS.into(), mappings.collect());
    }
    if let Some(bandwidth) = bandwidth(request)? {
        args.insert("bandwidth".into(), bandwidth);
    }
    if let Some(dns) = &request.dns {
        args.insert(
            "dns".into(),
            json!({"servers": dns.servers, "searches": dns.searches, "options": dns.options}),
        );
    }
    if !request.cgroup_parent.is_empty() {
        args.insert("cgroupPath".into(), request.cgroup_parent.as_str().into());
    }
    if !request.annotations.is_empty() {
        args.insert("io.kubernetes.cri.pod-annotations".into(), json!(request.annotations));
    }
    Ok(args)
}

fn bandwidth(request: &Attachment) -> Result<Option<Value>, NetworkError> {
    let mut limits = Map::new();
    for (key, rate, burst) in BANDWIDTH {
        let Some(value) = request.annotations.get(key) else { continue };
        let refuse = |cause| NetworkError::Annotation {
            pod: request.pod.to_string(),
            key,
            value: value.clone(),
            cause,
        };
        let bits = quantity(value).ok_or_else(|| refuse("not a quantity"))?;
        if !RATES.contains(&bits) {
            return Err(refuse("must be from 1k to 1P bits per second"));
        }
        // In range, so exact: 1P is far below 2^53.
        #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "checked against RATES")]
        let bits = bits.ceil() as u64;
        limits.insert(rate.into(), bits.into());
        limits.insert(burst.into(), BURST.into());
    }
    Ok((!limits.is_empty()).then_some(Value::Object(limits)))
}

/// A Kubernetes resource quantity (apimachinery resource.Quantity): decimal number with a suffix or an exponent.
fn quantity(text: &str) -> Option<f64> {
    let end = text.find(|c: char| !c.is_ascii_digit() && !"+-.".contains(c)).unwrap_or(text.len());
    let (number, suffix) = text.split_at(end);
    let number: f64 = number.parse().ok()?;
    let scale = match suffix {
        "n" => 1e-9,
        "u" => 1e-6,
        "m" => 1e-3,
        "" => 1.0,
        "k" => 1e3,
        "M" => 1e6,
        "G" => 1e9,
        "T" => 1e12,
        "P" => 1e15,
        "E" => 1e18,
        "Ki" => 1024f64,
        "Mi" => 1024f64.powi(2),
        "Gi" => 1024f64.powi(3),
        "Ti" => 1024f64.powi(4),
        "Pi" => 1024f64.powi(5),
        "Ei" => 1024f64.powi(6),
        exponent => {
            let exponent: i32 = exponent.strip_prefix(['e', 'E'])?.parse().ok()?;
            10f64.powi(exponent)
        }
    };
    Some(number * scale)
}

#[cfg(test)]
mod tests {
    use super::super::fixture::attachment;
    use super::*;
    use crate::model::{DnsConfig, PortMapping};

    #[test]
    fn args_begin_with_ignore_unknown() {
        let request = attachment();
        let args: Vec<String> = cni_args(&request).unwrap().iter().map(|pair| pair.join("=")).collect();
        let id = format!("K8S_POD_INFRA_CONTAINER_ID={}", request.sandbox);
        assert_eq!(
            args,
            ["IgnoreUnknown=1", "K8S_POD_NAMESPACE=ns", "K8S_POD_NAME=web", &id, "K8S_POD_UID=u-1"]
        );
        for name in ["x;IP=1.2.3.4", "x=y", "x\0"] {
            let mut evil = attachment();
            evil.pod.name = name.into();
            let refused = cni_args(&evil).unwrap_err();
            assert!(matches!(&refused, NetworkError::Argument { what, .. } if what == "K8S_POD_NAME"));
            let keys: Vec<_> = cni_args_to_detach(&evil).into_iter().map(|[key, _]| key).collect();
            assert_eq!(keys, ["IgnoreUnknown", "K8S_POD_NAMESPACE", SANDBOX_KEY, "K8S_POD_UID"]);
        }
    }

    #[test]
    fn only_what_there_is_becomes_an_argument() {
        let mut request = attachment();
        assert!(capability_args(&request).unwrap().is_empty());
        request.port_mappings = vec![PortMapping {
            protocol: Protocol::Udp,
            container_port: 53,
            host_port: 5353,
            host_ip: Some("127.0.0.1".parse().unwrap()),
        }];
        request.cgroup_parent = "/kubepods/x".into();
        request.dns = Some(DnsConfig { servers: vec!["10.0.0.10".into()], ..DnsConfig::default() });
        request.annotations.insert("kubernetes.io/ingress-bandwidth".into(), "10M".into());
        assert_eq!(
            Value::Object(capability_args(&request).unwrap()),
            json!({
                "portMappings": [{"hostPort": 5353, "containerPort": 53, "protocol": "udp", "hostIP": "127.0.0.1"}],
                "bandwidth": {"ingressRate": 10_000_000, "ingressBurst": 4_294_967_295u64},
                "dns": {"servers": ["10.0.0.10"], "searches": [], "options": []},
                "cgroupPath": "/kubepods/x",
                "io.kubernetes.cri.pod-annotations": {"kubernetes.io/ingress-bandwidth": "10M"},
            })
        );
    }

    #[test]
    fn bandwidth_outside_the_range_is_refused() {
        for (value, good) in
            [("1k", true), ("1P", true), ("999", false), ("2P", false), ("x", false), ("-1M", false)]
        {
            let mut request = attachment();
            request.annotations.insert("kubernetes.io/egress-bandwidth".into(), value.into());
            assert_eq!(capability_args(&request).is_ok(), good, "{value}");
        }
    }

    #[test]
    fn quantities() {
        for (text, want) in
            [("1.5M", 1.5e6), ("2Ki", 2048.0), ("1e6", 1e6), ("1E6", 1e6), ("3E", 3e18), ("12", 12.0)]
        {
            assert_eq!(quantity(text), Some(want), "{text}");
        }
        for text in ["", "M", "1 M", "1Q", "nan", "inf", "1e"] {
            assert_eq!(quantity(text), None, "{text}");
        }
    }
}
