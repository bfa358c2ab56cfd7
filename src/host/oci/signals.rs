//! Linux signals by name and number, in the forms of images and CRI.

/// Names without SIG, in the numbering of Linux on x86 and Arm; index 0 is signal 1.
const NAMES: [&str; 31] = [
    "HUP", "INT", "QUIT", "ILL", "TRAP", "ABRT", "BUS", "FPE", "KILL", "USR1", "SEGV", "USR2", "PIPE",
    "ALRM", "TERM", "STKFLT", "CHLD", "CONT", "STOP", "TSTP", "TTIN", "TTOU", "URG", "XCPU", "XFSZ",
    "VTALRM", "PROF", "WINCH", "IO", "PWR", "SYS",
];
/// Other names of the same signals.
const ALIASES: [(&str, i32); 4] = [("CLD", 17), ("IOT", 6), ("POLL", 29), ("UNUSED", 31)];
/// First real-time signal that programs may use (glibc keeps 32 and 33).
const RTMIN: i32 = 34;
/// Last real-time signal.
const RTMAX: i32 = 64;

/// Reads `SIGTERM`, `TERM`, `15`, `SIGRTMIN+3`, `RTMAX-1`.
#[must_use]
pub fn signal_number(name: &str) -> Option<i32> {
    if let Ok(number) = name.parse::<i32>() {
        return (1..=RTMAX).contains(&number).then_some(number);
    }
    let upper = name.to_ascii_uppercase();
    let bare = upper.strip_prefix("SIG").unwrap_or(&upper);
    if let Some(offset) = bare.strip_prefix("RTMIN") {
        return real_time(RTMIN, offset, '+', 1);
    }
    if let Some(offset) = bare.strip_prefix("RTMAX") {
        return real_time(RTMAX, offset, '-', -1);
    }
    let listed = NAMES.iter().position(|n| *n == bare).and_then(|index| i32::try_from(index + 1).ok());
    listed.or_else(|| ALIASES.iter().find(|(alias, _)| *alias == bare).map(|(_, number)| *number))
}

fn real_time(base: i32, offset: &str, sign: char, direction: i32) -> Option<i32> {
    if offset.is_empty() {
        return Some(base);
    }
    let steps: i32 = offset.strip_prefix(sign)?.parse().ok()?;
    Some(base + direction * steps).filter(|number| (RTMIN..=RTMAX).contains(number))
}

/// The name with SIG; real-time signals as CRI counts them, up from RTMIN to +15 and down from RTMAX.
#[must_use]
pub fn signal_name(number: i32) -> Option<String> {
    let index = usize::try_from(number).ok()?.checked_sub(1)?;
    if let Some(name) = NAMES.get(index) {
        return Some(format!("SIG{name}"));
    }
    match number {
        RTMIN => Some("SIGRTMIN".to_owned()),
        RTMAX => Some("SIGRTMAX".to_owned()),
        35..=49 => Some(format!("SIGRTMIN+{}", number - RTMIN)),
        50..=63 => Some(format!("SIGRTMAX-{}", RTMAX - number)),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_form_is_read() {
        for (name, number) in [
            ("SIGTERM", 15),
            ("TERM", 15),
            ("15", 15),
            ("sigkill", 9),
            ("SIGRTMIN+3", 37),
            ("RTMIN", 34),
            ("SIGRTMAX-1", 63),
            ("SIGCLD", 17),
            ("SIGSYS", 31),
        ] {
            assert_eq!(signal_number(name), Some(number), "{name}");
        }
        for name in ["", "SIG", "SIGNOPE", "0", "65", "RTMIN+99", "RTMAX+1", "-1"] {
            assert_eq!(signal_number(name), None, "{name}");
        }
    }

    #[test]
    fn names_and_numbers_agree() {
        for number in (1..=31).chain(34..=64) {
            assert_eq!(signal_number(&signal_name(number).unwrap()), Some(number));
        }
        assert_eq!(signal_name(32), None);
    }
}
