//! Who a container runs as: user and group names looked up in the image's own /etc/passwd and /etc/group.
//!
//! Owns the reading of those two files, which are hostile input: they are opened beneath the container's root, are
//! read only if they are regular files, and only up to a limit. Never writes, never asks the host's user database.

use crate::model::{GroupsPolicy, RunAs, WORKER_UID};
use rustix::fs::{FileType, Mode, OFlags, ResolveFlags};
use rustix::io::Errno;
use serde::{Deserialize, Serialize};
use std::fs::File;
use std::io::Read as _;
use std::path::{Path, PathBuf};

/// Bytes of /etc/passwd or /etc/group that are read at most (containerd's limit after CVE-2026-47262).
pub const MAX_USER_FILE_BYTES: u64 = 10 << 20;

/// Longest login name and home directory, bytes: LOGIN_NAME_MAX and PATH_MAX. They go into records and the environment.
const MAX_NAME: usize = 256;
const MAX_HOME: usize = 4096;

/// A resolved user.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct User {
    /// User id in the container.
    pub uid: u32,
    /// Primary group.
    pub gid: u32,
    /// Supplementary groups, sorted, with the primary one.
    pub additional_gids: Vec<u32>,
    /// Home directory of the passwd line; `/` without one.
    pub home: String,
    /// Login name, where the user has a passwd line.
    pub username: Option<String>,
}

/// Why a user could not be resolved.
#[derive(Debug, thiserror::Error)]
pub enum UserError {
    /// run_as_group without a user (CRI).
    #[error("run_as_group is {gid} but neither run_as_user nor run_as_username is given")]
    GroupWithoutUser {
        /// The group.
        gid: u32,
    },
    /// A number above 2^32-2.
    #[error("{what} {value:?} is out of range for an id")]
    OutOfRange {
        /// `user` or `group`.
        what: &'static str,
        /// As given.
        value: String,
    },
    /// A name that the image does not know.
    #[error("{what} {name:?} is not in the image's {file}")]
    Unknown {
        /// `user` or `group`.
        what: &'static str,
        /// As given.
        name: String,
        /// Where it was looked up.
        file: &'static str,
    },
    /// The file could not be opened or read.
    #[error("read {file} of the container root {}: {cause}", rootfs.display())]
    Read {
        /// The file.
        file: &'static str,
        /// The root.
        rootfs: PathBuf,
        /// Cause.
        cause: std::io::Error,
    },
    /// A fifo, device, directory or socket.
    #[error("{file} of the container root {} is not a regular file", rootfs.display())]
    NotRegular {
        /// The file.
        file: &'static str,
        /// The root.
        rootfs: PathBuf,
    },
    /// More than a process may have.
    #[error("the user is in {groups} groups, and a process can be in {MAX_GROUPS} at most")]
    TooManyGroups {
        /// By the request and the image's /etc/group.
        groups: usize,
    },
    /// More than [`MAX_USER_FILE_BYTES`].
    #[error("{file} of the container root {} is larger than {MAX_USER_FILE_BYTES} bytes", rootfs.display())]
    TooLarge {
        /// The file.
        file: &'static str,
        /// The root.
        rootfs: PathBuf,
    },
}

/// Supplementary groups of a process: Linux's NGROUPS_MAX. A group file that is just small enough has twenty times as many.
const MAX_GROUPS: usize = 65_536;

const PASSWD: &str = "/etc/passwd";
const GROUP: &str = "/etc/group";

/// Resolves the user of a container over its mounted root. Precedence: `run_as.uid`, `run_as.username`, then
/// `image_user` (`user[:group]`, each a name or a number); `run_as.gid` replaces the primary group.
///
/// # Errors
/// When a name is unknown, a number too large, or a file cannot be read.
pub fn resolve(rootfs: &Path, image_user: &str, run_as: &RunAs) -> Result<User, UserError> {
    let (user, group) = requested(image_user, run_as)?;
    let files = Files { passwd: read(rootfs, PASSWD)?, group: read(rootfs, GROUP)? };
    resolve_in(&files, user, group, run_as)
}

struct Files {
    passwd: String,
    group: String,
}

/// A user or group as given. All digits is a number, never a name.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Word<'a> {
    Empty,
    Id(u32),
    Name(&'a str),
}

impl<'a> Word<'a> {
    fn parse(what: &'static str, text: &'a str) -> Result<Self, UserError> {
        let digits = text.strip_prefix(['-', '+']).unwrap_or(text);
        if text.is_empty() {
            Ok(Word::Empty)
        } else if digits.bytes().all(|b| b.is_ascii_digit()) && !digits.is_empty() {
            match text.parse::<u32>() {
                Ok(id) if is_one(id) && digits.len() == text.len() => Ok(Word::Id(id)),
                _ => Err(UserError::OutOfRange { what, value: text.chars().take(80).collect() }),
            }
        } else {
            Ok(Word::Name(text))
        }
    }
}

fn requested<'a>(image_user: &'a str, run_as: &'a RunAs) -> Result<(Word<'a>, Word<'a>), UserError> {
    let named = run_as.username.as_deref().filter(|name| !name.is_empty());
    let (user, group) = match (run_as.uid, named) {
        (Some(uid), _) => (check("user", uid).map(Word::Id)?, Word::Empty),
        (None, Some(name)) => split(name)?,
        (None, None) => {
            if let Some(gid) = run_as.gid {
                return Err(UserError::GroupWithoutUser { gid });
            }
            split(image_user)?
        }
    };
    let group = match run_as.gid {
        Some(gid) => Word::Id(check("group", gid)?),
        None => group,
    };
    for gid in &run_as.supplemental_groups {
        check("group", *gid)?;
    }
    Ok((user, group))
}

fn check(what: &'static str, id: u32) -> Result<u32, UserError> {
    if is_one(id) { Ok(id) } else { Err(UserError::OutOfRange { what, value: id.to_string() }) }
}

/// Whether it is an id that a container may have: the last of 32 bits is none, and one is our workers', whom only their own
/// user could signal.
fn is_one(id: u32) -> bool {
    id != u32::MAX && id != WORKER_UID
}

fn split(text: &str) -> Result<(Word<'_>, Word<'_>), UserError> {
    let (user, group) = text.split_once(':').unwrap_or((text, ""));
    Ok((Word::parse("user", user)?, Word::parse("group", group)?))
}

struct Passwd<'a> {
    name: &'a str,
    uid: u32,
    gid: u32,
    home: &'a str,
}

/// A number of a file. The last of 32 bits is none, see [`Word::parse`]: a process that is to become it stays who it is.
fn id(text: &str) -> Option<u32> {
    text.parse().ok().filter(|id| is_one(*id))
}

/// Lines with a well-formed uid and gid; others are no user.
fn passwd_lines(text: &str) -> impl Iterator<Item = Passwd<'_>> {
    text.lines().filter_map(|line| {
        let mut fields = line.trim_end_matches('\r').split(':');
        let name = fields.next().filter(|name| !name.is_empty() && name.len() <= MAX_NAME)?;
        let uid = id(fields.nth(1)?)?;
        let gid = id(fields.next()?)?;
        let home = fields.nth(1).unwrap_or("");
        (home.len() <= MAX_HOME).then_some(Passwd { name, uid, gid, home })
    })
}

/// (name, gid, members)
fn group_lines(text: &str) -> impl Iterator<Item = (&str, u32, &str)> {
    text.lines().filter_map(|line| {
        let mut fields = line.trim_end_matches('\r').split(':');
        let name = fields.next().filter(|name| !name.is_empty())?;
        let gid = id(fields.nth(1)?)?;
        Some((name, gid, fields.next().unwrap_or("")))
    })
}

fn resolve_in(files: &Files, user: Word<'_>, group: Word<'_>, run_as: &RunAs) -> Result<User, UserError> {
    let mut lines = passwd_lines(&files.passwd);
    let (uid, line) = match user {
        Word::Empty => (0, lines.find(|line| line.uid == 0)),
        Word::Id(uid) => (uid, lines.find(|line| line.uid == uid)),
        Word::Name(name) => {
            let line = lines.find(|line| line.name == name).ok_or_else(|| unknown("user", name, PASSWD))?;
            (line.uid, Some(line))
        }
    };
    let gid = match group {
        // A number without a passwd line belongs to group 0, as with the peers.
        Word::Empty => line.as_ref().map_or(0, |line| line.gid),
        Word::Id(gid) => gid,
        Word::Name(name) => group_lines(&files.group)
            .find(|(known, _, _)| *known == name)
            .map(|(_, gid, _)| gid)
            .ok_or_else(|| unknown("group", name, GROUP))?,
    };
    let mut additional_gids = run_as.supplemental_groups.clone();
    additional_gids.push(gid);
    if let (GroupsPolicy::Merge, Some(line)) = (run_as.groups_policy, &line) {
        let is_member = |members: &str| members.split(',').any(|member| member.trim() == line.name);
        additional_gids.extend(
            group_lines(&files.group).filter(|(_, _, members)| is_member(members)).map(|(_, gid, _)| gid),
        );
    }
    additional_gids.sort_unstable();
    additional_gids.dedup();
    if additional_gids.len() > MAX_GROUPS {
        return Err(UserError::TooManyGroups { groups: additional_gids.len() });
    }
    let home = line.as_ref().map(|line| line.home).filter(|home| home.starts_with('/')).unwrap_or("/");
    Ok(User { uid, gid, additional_gids, home: home.to_owned(), username: line.map(|l| l.name.to_owned()) })
}

fn unknown(what: &'static str, name: &str, file: &'static str) -> UserError {
    UserError::Unknown { what, name: name.chars().take(80).collect(), file }
}

/// The text of one file; a missing one is empty. Symlinks are followed within the root only. The file is looked at
/// before it is opened, and opened without blocking, so a fifo or a device cannot hang us.
fn read(rootfs: &Path, file: &'static str) -> Result<String, UserError> {
    let failed = |e: std::io::Error| UserError::Read { file, rootfs: rootfs.to_owned(), cause: e };
    let root = rustix::fs::open(rootfs, OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())
        .map_err(|e| failed(e.into()))?;
    let resolve = ResolveFlags::IN_ROOT | ResolveFlags::NO_MAGICLINKS;
    let place = match rustix::fs::openat2(&root, file, OFlags::PATH | OFlags::CLOEXEC, Mode::empty(), resolve)
    {
        Ok(place) => place,
        Err(Errno::NOENT | Errno::NOTDIR) => return Ok(String::new()),
        Err(e) => return Err(failed(e.into())),
    };
    let stat = rustix::fs::fstat(&place).map_err(|e| failed(e.into()))?;
    if FileType::from_raw_mode(stat.st_mode) != FileType::RegularFile {
        return Err(UserError::NotRegular { file, rootfs: rootfs.to_owned() });
    }
    let flags = OFlags::RDONLY | OFlags::NONBLOCK | OFlags::NOCTTY | OFlags::CLOEXEC;
    let opened =
        rustix::fs::openat2(&root, file, flags, Mode::empty(), resolve).map_err(|e| failed(e.into()))?;
    let now = rustix::fs::fstat(&opened).map_err(|e| failed(e.into()))?;
    if FileType::from_raw_mode(now.st_mode) != FileType::RegularFile {
        return Err(UserError::NotRegular { file, rootfs: rootfs.to_owned() });
    }
    let mut bytes = Vec::new();
    File::from(opened).take(MAX_USER_FILE_BYTES + 1).read_to_end(&mut bytes).map_err(failed)?;
    if u64::try_from(bytes.len()).unwrap_or(u64::MAX) > MAX_USER_FILE_BYTES {
        return Err(UserError::TooLarge { file, rootfs: rootfs.to_owned() });
    }
    Ok(String::from_utf8(bytes).unwrap_or_else(|e| String::from_utf8_lossy(e.as_bytes()).into_owned()))
}

/// The door of the fuzz target `users`: a user as an image names it, and the two files, with NULs between. An id is never
/// the one that means "no change".
#[cfg(any(test, fuzzing))]
pub(super) fn fuzz(data: &[u8]) {
    let text = String::from_utf8_lossy(data);
    let mut parts = text.splitn(3, '\0');
    let mut part = || parts.next().unwrap_or_default();
    let (image_user, files) = (part(), Files { passwd: part().to_owned(), group: part().to_owned() });
    let run_as = RunAs::default();
    let Ok((user, group)) = requested(image_user, &run_as) else { return };
    let Ok(user) = resolve_in(&files, user, group, &run_as) else { return };
    assert!(user.additional_gids.is_sorted() && user.additional_gids.contains(&user.gid));
    assert!(user.uid != u32::MAX && !user.additional_gids.contains(&u32::MAX));
    assert!(user.home.starts_with('/'));
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;

    const PASSWD_TEXT: &str = "root:x:0:0:root:/root:/bin/sh\nbroken\nweb:x:1000:1001:Web:/srv/web:/bin/sh\n\
        1234:x:7:7::/home/seven:\nevil:x:4294967296:0::/:\n";
    const GROUP_TEXT: &str =
        "root:x:0:\nweb:x:1001:\naudio:x:29:root,web\nvideo:x:44:web\nmany:x:50000:default,web\n";

    fn image() -> tempfile::TempDir {
        let root = tempfile::tempdir().unwrap();
        fs::create_dir(root.path().join("etc")).unwrap();
        fs::write(root.path().join("etc/passwd"), PASSWD_TEXT).unwrap();
        fs::write(root.path().join("etc/group"), GROUP_TEXT).unwrap();
        root
    }

    fn by(image_user: &str, run_as: RunAs) -> Result<User, UserError> {
        resolve(image().path(), image_user, &run_as)
    }

    #[test]
    fn the_image_user_may_be_names_or_numbers() {
        let cases = [
            ("", (0, 0), Some("root")),
            ("web", (1000, 1001), Some("web")),
            ("1000", (1000, 1001), Some("web")),
            ("web:audio", (1000, 29), Some("web")),
            ("web:5", (1000, 5), Some("web")),
            ("4242", (4242, 0), None),
            ("4242:77", (4242, 77), None),
            // All digits is never a name, although a line of that name exists.
            ("1234", (1234, 0), None),
            (":audio", (0, 29), Some("root")),
        ];
        for (text, ids, name) in cases {
            let user = by(text, RunAs::default()).unwrap();
            assert_eq!(((user.uid, user.gid), user.username.as_deref()), (ids, name), "{text}");
        }
    }

    #[test]
    fn ids_that_do_not_fit_are_errors_and_never_root() {
        for text in [
            "4042322161",
            "4294967295",
            "4294967296",
            "9223372036854775808",
            "-1",
            "+5",
            "web:4294967296",
            "0:-1",
        ] {
            assert!(matches!(by(text, RunAs::default()), Err(UserError::OutOfRange { .. })), "{text}");
        }
        assert!(matches!(by("evil", RunAs::default()), Err(UserError::Unknown { .. })));
        let all_ones = RunAs { uid: Some(u32::MAX), ..RunAs::default() };
        assert!(matches!(by("", all_ones), Err(UserError::OutOfRange { .. })));
    }

    #[test]
    fn no_line_of_the_image_makes_the_id_that_changes_nothing() {
        let rootfs = tempfile::tempdir().unwrap();
        std::fs::create_dir(rootfs.path().join("etc")).unwrap();
        let passwd = "evil:x:4294967295:1::/:\nworse:x:5:4294967295::/:\nfine:x:6:7::/:\n";
        std::fs::write(rootfs.path().join("etc/passwd"), passwd).unwrap();
        let group = "evil:x:4294967295:fine\nother:x:8:fine\n";
        std::fs::write(rootfs.path().join("etc/group"), group).unwrap();
        let by = |user: &str| resolve(rootfs.path(), user, &RunAs::default());
        for text in ["evil", "worse", "fine:evil"] {
            assert!(matches!(by(text), Err(UserError::Unknown { .. })), "{text}");
        }
        assert_eq!(by("fine").unwrap().additional_gids, [7, 8]);
    }

    #[test]
    fn more_groups_than_a_process_can_have_are_an_error() {
        let root = image();
        let members = |count: u32| (0..count).map(|gid| format!("g{gid}:x:{gid}:web\n")).collect::<String>();
        let of = |count| {
            std::fs::write(root.path().join("etc/group"), members(count)).unwrap();
            resolve(root.path(), "web", &RunAs::default())
        };
        // As many as fit into the file.
        assert!(matches!(of(400_000), Err(UserError::TooManyGroups { groups: 400_000 })));
        assert_eq!(of(65_536).unwrap().additional_gids.len(), 65_536);
    }

    #[test]
    fn unknown_names_are_errors() {
        for text in ["nobody", "web:nogroup"] {
            assert!(matches!(by(text, RunAs::default()), Err(UserError::Unknown { .. })), "{text}");
        }
    }

    #[test]
    fn what_cri_asks_wins_over_the_image() {
        let uid = RunAs { uid: Some(1000), username: Some("root".into()), ..RunAs::default() };
        assert_eq!(by("root", uid).unwrap().uid, 1000);
        let name = RunAs { username: Some("web".into()), ..RunAs::default() };
        assert_eq!(by("0:0", name).unwrap().gid, 1001);
        let group = RunAs { uid: Some(1000), gid: Some(3), ..RunAs::default() };
        assert_eq!(by("", group).unwrap().gid, 3);
        let image_group_is_dropped = RunAs { uid: Some(5), ..RunAs::default() };
        assert_eq!(by("web:audio", image_group_is_dropped).unwrap().gid, 0);
    }

    #[test]
    fn a_group_needs_a_user() {
        let group = RunAs { gid: Some(3), ..RunAs::default() };
        assert!(matches!(by("web", group), Err(UserError::GroupWithoutUser { gid: 3 })));
    }

    #[test]
    fn merge_adds_the_memberships_and_strict_does_not() {
        let run_as = |policy| RunAs {
            uid: Some(1000),
            supplemental_groups: vec![1234],
            groups_policy: policy,
            ..RunAs::default()
        };
        let merged = by("", run_as(GroupsPolicy::Merge)).unwrap();
        assert_eq!(merged.additional_gids, [29, 44, 1001, 1234, 50000]);
        let strict = by("", run_as(GroupsPolicy::Strict)).unwrap();
        assert_eq!(strict.additional_gids, [1001, 1234]);
    }

    #[test]
    fn an_image_without_the_files_knows_numbers_only() {
        let empty = tempfile::tempdir().unwrap();
        let user = resolve(empty.path(), "77", &RunAs::default()).unwrap();
        assert_eq!((user.uid, user.gid, user.home.as_str()), (77, 0, "/"));
        assert!(resolve(empty.path(), "web", &RunAs::default()).is_err());
    }

    #[test]
    fn symlinks_stay_within_the_root() {
        let root = image();
        fs::rename(root.path().join("etc/passwd"), root.path().join("real")).unwrap();
        std::os::unix::fs::symlink("/../../real", root.path().join("etc/passwd")).unwrap();
        assert_eq!(resolve(root.path(), "web", &RunAs::default()).unwrap().uid, 1000);
        // The host's own file must not be reached: the host has a user that this image lacks.
        fs::remove_file(root.path().join("etc/passwd")).unwrap();
        std::os::unix::fs::symlink("/etc/../../../etc/shadow", root.path().join("etc/passwd")).unwrap();
        assert!(matches!(resolve(root.path(), "daemon", &RunAs::default()), Err(UserError::Unknown { .. })));
    }

    #[test]
    fn a_fifo_a_device_and_a_directory_are_refused_without_hanging() {
        let root = image();
        let passwd = root.path().join("etc/passwd");
        fs::remove_file(&passwd).unwrap();
        nix::unistd::mkfifo(&passwd, nix::sys::stat::Mode::S_IRWXU).unwrap();
        assert!(matches!(resolve(root.path(), "1", &RunAs::default()), Err(UserError::NotRegular { .. })));
        fs::remove_file(&passwd).unwrap();
        fs::create_dir(&passwd).unwrap();
        assert!(matches!(resolve(root.path(), "1", &RunAs::default()), Err(UserError::NotRegular { .. })));
        fs::remove_dir(&passwd).unwrap();
        let zero = nix::sys::stat::makedev(1, 5);
        nix::sys::stat::mknod(&passwd, nix::sys::stat::SFlag::S_IFCHR, nix::sys::stat::Mode::S_IRWXU, zero)
            .unwrap();
        assert!(matches!(resolve(root.path(), "1", &RunAs::default()), Err(UserError::NotRegular { .. })));
    }

    #[test]
    fn a_line_with_an_overlong_name_or_home_is_no_user() {
        let root = image();
        let (name, home) = ("n".repeat(257), "h".repeat(4096));
        fs::write(root.path().join("etc/passwd"), format!("{name}:x:5:5::/:\na:x:6:6::/{home}:\n")).unwrap();
        for (uid, user) in [("5", &name[..]), ("6", "a")] {
            let found = resolve(root.path(), uid, &RunAs::default()).unwrap();
            assert_eq!((found.username, found.home.as_str()), (None, "/"), "{uid}");
            assert!(resolve(root.path(), user, &RunAs::default()).is_err(), "{uid}");
        }
    }

    #[test]
    fn a_huge_file_is_refused() {
        let root = image();
        // Sparse, so it costs no disk.
        File::create(root.path().join("etc/group")).unwrap().set_len(10 << 30).unwrap();
        assert!(matches!(resolve(root.path(), "1", &RunAs::default()), Err(UserError::TooLarge { .. })));
    }
}
