//! The kind of file system that a file is on.

use std::path::Path;

/// File systems over a network. Processes on two machines would not share the memory that SQLite's WAL needs,
/// and their locks cannot be relied on.
const NETWORK: [&str; 25] = [
    "nfs",
    "nfs4",
    "cifs",
    "smb3",
    "smbfs",
    "9p",
    "virtiofs",
    "vboxsf",
    "afs",
    "ceph",
    "fuse.ceph",
    "fuse.ceph-fuse",
    "fuse.sshfs",
    "fuse.rclone",
    "glusterfs",
    "fuse.glusterfs",
    "lustre",
    "beegfs",
    "gpfs",
    "gfs2",
    "ocfs2",
    "orangefs",
    "ncpfs",
    "davfs",
    "fuse.s3fs",
];

/// The type of the network file system that holds `path`, if one does.
#[cfg(target_os = "linux")]
pub(super) fn network(path: &Path) -> Option<String> {
    use std::os::linux::fs::MetadataExt;
    let device = std::fs::metadata(path).ok()?.st_dev();
    let mounts = std::fs::read_to_string("/proc/self/mountinfo").ok()?;
    kind(&mounts, device).filter(|kind| NETWORK.contains(kind)).map(str::to_owned)
}

#[cfg(not(target_os = "linux"))]
pub(super) fn network(_: &Path) -> Option<String> {
    None
}

/// The type of the file system with this device number, from `/proc/self/mountinfo` (proc(5)): the third
/// field is MAJOR:MINOR, and the type follows the separator "-".
fn kind(mounts: &str, device: u64) -> Option<&str> {
    let (major, minor) = numbers(device);
    let wanted = format!("{major}:{minor}");
    mounts.lines().find_map(|line| {
        let mut fields = line.split(' ');
        (fields.nth(2)? == wanted).then_some(())?;
        fields.skip_while(|field| *field != "-").nth(1)
    })
}

/// The two parts of a device number, as the C library packs them.
fn numbers(device: u64) -> (u64, u64) {
    let major = ((device >> 32) & 0xffff_f000) | ((device >> 8) & 0xfff);
    let minor = ((device >> 12) & 0xffff_ff00) | (device & 0xff);
    (major, minor)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const MOUNTS: &str = "\
        22 1 254:0 / / rw,relatime shared:1 - ext4 /dev/vda rw\n\
        36 22 0:31 / /srv/my\\040mail rw,relatime shared:2 master:1 - nfs4 server:/mail rw,vers=4.2\n\
        37 22 0:32 / /mnt rw - tmpfs none rw\n";

    #[test]
    fn the_type_is_found_by_the_number_of_the_device() {
        assert_eq!(kind(MOUNTS, 254 << 8), Some("ext4"));
        assert_eq!(kind(MOUNTS, 31), Some("nfs4"));
        assert_eq!(kind(MOUNTS, 32), Some("tmpfs"));
        assert_eq!(kind(MOUNTS, 33), None);
    }

    proptest! {
        /// makedev(3)
        #[test]
        fn a_device_number_has_two_parts(major in any::<u32>(), minor in any::<u32>()) {
            let (major, minor) = (u64::from(major), u64::from(minor));
            let (high, low) = ((major & 0xffff_f000) << 32, (major & 0xfff) << 8);
            let packed = high | (minor & 0xffff_ff00) << 12 | low | minor & 0xff;
            prop_assert_eq!(numbers(packed), (major, minor));
        }
    }

    #[test]
    #[cfg(target_os = "linux")]
    fn a_local_directory_is_none() {
        assert_eq!(network(&std::env::temp_dir()), None);
    }
}
