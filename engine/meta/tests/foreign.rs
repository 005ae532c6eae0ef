//! Signatures that are recognised: made by hand, and by the file system tools that are installed.

use std::process::Command;

use zea_meta::create::create_md;
use zea_meta::foreign::{Signature, probe_foreign};
use zea_meta::{CreateParams, LayoutParams, WriteContent};

const SIZE: usize = 8 << 20;

fn probe(device: &[u8]) -> Vec<Signature> {
    let read = &mut |offset: u64, buffer: &mut [u8]| {
        let start = usize::try_from(offset).expect("an offset");
        buffer.copy_from_slice(&device[start..start + buffer.len()]);
        Ok::<(), ()>(())
    };
    probe_foreign(device.len() as u64, read).expect("reading memory works")
}

fn names(device: &[u8]) -> Vec<&'static str> {
    probe(device).into_iter().map(|signature| signature.name).collect()
}

fn with(parts: &[(usize, &[u8])]) -> Vec<u8> {
    let mut device = vec![0; SIZE];
    for (offset, bytes) in parts {
        device[*offset..offset + bytes.len()].copy_from_slice(bytes);
    }
    device
}

#[test]
fn meta_foreign_nothing_on_an_empty_device() {
    assert_eq!(names(&vec![0; SIZE]), [""; 0]);
    for size in [0, 1, 511, 512, 4095, 4096, 8192, 70_000] {
        assert_eq!(names(&vec![0; size]), [""; 0]);
    }
    assert_eq!(names(&vec![0xff; SIZE]), [""; 0]);
}

#[test]
fn meta_foreign_signatures_are_recognised() {
    let ext = |compat: u8, incompat: u8| with(&[(1080, &[0x53, 0xef]), (1116, &[compat]), (1120, &[incompat])]);
    let mut mbr = [0; 66];
    mbr[4] = 0x83;
    mbr[12] = 8;
    mbr[64..].copy_from_slice(&[0x55, 0xaa]);
    let raid = [0xfc, 0x4e, 0x2b, 0xa9];
    let cases: [(Vec<u8>, &str); 22] = [
        (ext(0, 2), "ext2 file system"),
        (ext(4, 2), "ext3 file system"),
        (ext(4, 0x42), "ext4 file system"),
        (ext(0, 8), "ext3 or ext4 external journal"),
        (with(&[(0, b"XFSB")]), "XFS file system"),
        (with(&[(65_600, b"_BHRfS_M")]), "btrfs file system"),
        (with(&[(0x8001, b"CD001")]), "ISO 9660 file system"),
        (with(&[(3, b"NTFS    ")]), "NTFS file system"),
        (with(&[(82, b"FAT32   "), (510, &[0x55, 0xaa])]), "FAT32 file system"),
        (with(&[(0, b"LUKS\xba\xbe\0\x02")]), "LUKS encrypted volume"),
        (with(&[(512, b"LABELONE"), (512 + 24, b"LVM2 001")]), "LVM physical volume"),
        (with(&[(4086, b"SWAPSPACE2")]), "swap space"),
        (with(&[(446, &mbr)]), "MBR partition table"),
        (with(&[(512, b"EFI PART")]), "GPT partition table"),
        (with(&[(4096, b"EFI PART")]), "GPT partition table"),
        (with(&[(SIZE - 512, b"EFI PART")]), "GPT partition table (backup)"),
        (with(&[(4096, &raid)]), "Linux software RAID member"),
        (with(&[(SIZE - 8192, &raid)]), "Linux software RAID member"),
        (with(&[(SIZE - 65_536, &raid)]), "Linux software RAID member"),
        (with(&[(131_072 + 5 * 1024, &0x00ba_b10c_u64.to_le_bytes())]), "ZFS pool member"),
        (with(&[(SIZE - 4096 + 60, &0x8374_026c_u32.to_be_bytes())]), "DRBD meta data v08"),
        (with(&[(28, &0x8374_026a_u32.to_be_bytes())]), "DRBD meta data v07"),
    ];
    for (device, name) in cases {
        assert_eq!(names(&device), [name]);
    }
}

#[test]
fn meta_foreign_boot_code_without_partitions_is_no_table() {
    assert_eq!(names(&with(&[(510, &[0x55, 0xaa])])), [""; 0]);
    // A status byte that no partition has: text, not a table.
    assert_eq!(names(&with(&[(446, &[b'x'; 64]), (510, &[0x55, 0xaa])])), [""; 0]);
}

#[test]
fn meta_foreign_several_signatures_are_all_named() {
    let device = with(&[(0, b"LUKS\xba\xbe"), (SIZE - 512, b"EFI PART")]);
    let found = probe(&device);
    assert_eq!(found.iter().map(|signature| signature.offset_bytes).collect::<Vec<_>>(), [0, SIZE as u64 - 512]);
}

#[test]
fn meta_foreign_fresh_meta_data_of_zea_is_recognised() {
    let created = create_md(&CreateParams::new(LayoutParams::internal(SIZE as u64 / 512, 3))).expect("a layout");
    let mut device = vec![0; SIZE];
    for write in &created.writes {
        let start = usize::try_from(write.offset_bytes).expect("an offset");
        match &write.content {
            WriteContent::Bytes(bytes) => device[start..start + bytes.len()].copy_from_slice(bytes),
            WriteContent::Zeros(len) => device[start..start + usize::try_from(*len).expect("a length")].fill(0),
        }
    }
    let expected = Signature { name: "DRBD meta data v09", offset_bytes: SIZE as u64 - 4096 };
    assert_eq!(probe(&device), [expected]);
}

#[test]
fn meta_foreign_a_read_error_is_passed_on() {
    assert_eq!(probe_foreign(1 << 20, &mut |_, _| Err("broken")), Err("broken"));
}

/// Runs a tool of the system on a sparse file and probes the result.
fn assert_tool_is_recognised(program: &str, arguments: &[&str], size_bytes: u64, name: &str) {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let path = folder.path().join("disk");
    std::fs::File::create(&path).and_then(|file| file.set_len(size_bytes)).expect("a sparse image");
    let search = std::env::var("PATH").unwrap_or_default() + ":/usr/sbin:/sbin";
    match Command::new(program).args(arguments).arg(&path).env("PATH", search).output() {
        Ok(output) => {
            assert!(output.status.success(), "{program}: {}", String::from_utf8_lossy(&output.stderr));
            assert_eq!(names(&std::fs::read(&path).expect("the image")), [name]);
        }
        Err(error) => {
            assert!(std::env::var("CI").as_deref() != Ok("true"), "{program} cannot be run: {error}");
            eprintln!("SKIPPED, nothing was tested: {program} cannot be run: {error}");
        }
    }
}

#[test]
fn meta_foreign_knows_what_mkfs_and_mkswap_make() {
    let ext_size = 16 << 20;
    assert_tool_is_recognised("mke2fs", &["-q", "-F", "-t", "ext2"], ext_size, "ext2 file system");
    assert_tool_is_recognised("mke2fs", &["-q", "-F", "-t", "ext3"], ext_size, "ext3 file system");
    assert_tool_is_recognised("mke2fs", &["-q", "-F", "-t", "ext4"], ext_size, "ext4 file system");
    assert_tool_is_recognised("mkswap", &[], ext_size, "swap space");
}

#[test]
fn meta_foreign_knows_what_mkfs_xfs_makes() {
    assert_tool_is_recognised("mkfs.xfs", &["-q", "-f"], 300 << 20, "XFS file system");
}
