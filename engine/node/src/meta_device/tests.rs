use std::fs;
use std::path::PathBuf;

use super::*;
use crate::api::FailureKind;
use crate::config::{MetaDisk, Size};
use crate::fake::sample_resource;

fn super_block(path: &Path) -> SuperBlock {
    let device = Device::open(path).unwrap();
    let offset = internal_super_block_offset(device.size_bytes()).unwrap();
    SuperBlock::decode(&device.block(offset).unwrap()).unwrap()
}

fn disk(resource: &ResourceFile) -> PathBuf {
    resource.volumes[0].disk.clone()
}

#[test]
fn meta_device_makes_a_file_with_exactly_the_size() {
    let dir = tempfile::tempdir().unwrap();
    for size in ["1M", "4M", "256M", "1028K", "300M"] {
        let mut resource = sample_resource(&format!("r{size}"), dir.path());
        let size: Size = size.parse().unwrap();
        resource.volumes[0].size = Some(size);
        prepare(&resource, 0, false, |_| true).unwrap();
        let backing = fs::metadata(disk(&resource)).unwrap().len();
        let layout = Layout::compute(&LayoutParams::internal(backing / 512, SLOTS)).unwrap();
        assert!(layout.usable_sectors >= size.sectors(), "{size}: {layout:?}");
        assert!(backing - size.0 < (1 << 20), "{size}: {backing}");
    }
}

#[test]
fn meta_device_gives_every_other_node_a_slot_and_keeps_its_work() {
    let dir = tempfile::tempdir().unwrap();
    let mut resource = sample_resource("r0", dir.path());
    assert_eq!(prepare(&resource, 0, false, |_| true).unwrap().len(), 1);
    let first = super_block(&disk(&resource));
    assert_eq!((first.node_id, first.current_uuid), (Some(0), UUID_JUST_CREATED));
    assert_eq!((first.slot_of(0), first.slot_of(1), first.slot_of(2)), (None, Some(0), None));
    assert_ne!(first.device_uuid, 0);
    // Nothing to do the second time.
    assert!(prepare(&resource, 0, false, |_| true).unwrap().is_empty());
    assert_eq!(super_block(&disk(&resource)), first);
    // A node joins.
    let third = crate::config::Peer { id: 9, name: "charlie".into(), address: "127.0.0.9:7789".parse().unwrap() };
    resource.nodes.push(third);
    assert_eq!(prepare(&resource, 0, false, |_| true).unwrap().len(), 1);
    assert_eq!(super_block(&disk(&resource)).slot_of(9), Some(1));
}

#[test]
fn meta_device_marks_a_node_that_joins_later_for_a_full_sync() {
    let dir = tempfile::tempdir().unwrap();
    let mut resource = sample_resource("r0", dir.path());
    prepare(&resource, 0, false, |_| true).unwrap();
    let mut used = super_block(&disk(&resource));
    used.current_uuid = 0xabcd_0000;
    let mut block = [0; MD_BLOCK_SIZE];
    used.encode(&mut block);
    {
        let device = Device::open(&disk(&resource)).unwrap();
        device.write(internal_super_block_offset(device.size_bytes()).unwrap(), &block).unwrap();
    }
    resource.nodes[1].id = 5;
    prepare(&resource, 0, false, |_| true).unwrap();
    let after = super_block(&disk(&resource));
    assert_eq!((after.slot_of(1), after.slot_of(5)), (Some(0), Some(1)));
    assert!(after.peers[5].flags.contains(PeerFlags::FULL_SYNC));
    assert!(!after.peers[1].flags.contains(PeerFlags::FULL_SYNC));
}

#[test]
fn meta_device_refuses_another_nodes_meta_data() {
    let dir = tempfile::tempdir().unwrap();
    let resource = sample_resource("r0", dir.path());
    prepare(&resource, 1, false, |_| true).unwrap();
    let failure = prepare(&resource, 0, false, |_| true).unwrap_err();
    assert_eq!(failure.kind, FailureKind::Refused);
    assert!(failure.message.contains("node id 1") && failure.message.contains("--force"), "{failure}");
    assert_eq!(super_block(&disk(&resource)).node_id, Some(1));
    prepare(&resource, 0, true, |_| true).unwrap();
    assert_eq!(super_block(&disk(&resource)).node_id, Some(0));
}

#[test]
fn meta_device_refuses_a_file_system() {
    let dir = tempfile::tempdir().unwrap();
    let mut resource = sample_resource("r0", dir.path());
    resource.volumes[0].size = None;
    let mut image = vec![0; 4 << 20];
    image[..4].copy_from_slice(b"XFSB");
    fs::write(disk(&resource), &image).unwrap();
    let failure = prepare(&resource, 0, false, |_| true).unwrap_err();
    assert_eq!(failure.kind, FailureKind::Refused);
    assert!(failure.message.contains("XFS file system") && failure.message.contains("--force"), "{failure}");
    assert_eq!(fs::read(disk(&resource)).unwrap(), image, "refused, so not touched");
    prepare(&resource, 0, true, |_| true).unwrap();
    assert_eq!(super_block(&disk(&resource)).node_id, Some(0));
}

#[test]
fn meta_device_on_a_device_of_its_own() {
    let dir = tempfile::tempdir().unwrap();
    let mut resource = sample_resource("r0", dir.path());
    let meta = dir.path().join("meta");
    resource.volumes[0].meta_disk = MetaDisk::External(meta.clone());
    prepare(&resource, 0, false, |_| true).unwrap();
    assert_eq!(fs::metadata(disk(&resource)).unwrap().len(), 4 << 20, "all of the data file is data");
    assert_eq!(detect(&fs::read(&meta).unwrap()[..MD_BLOCK_SIZE]), Format::V09);
    assert_eq!(wipe(&resource).unwrap().len(), 1);
    assert_eq!(detect(&fs::read(&meta).unwrap()[..MD_BLOCK_SIZE]), Format::None);
}

#[test]
fn meta_device_refuses_what_it_cannot_use() {
    let dir = tempfile::tempdir().unwrap();
    let mut resource = sample_resource("r0", dir.path());
    resource.volumes[0].size = None;
    let failure = prepare(&resource, 0, false, |_| true).unwrap_err();
    assert!(failure.message.contains("size="), "{failure}");
    fs::write(disk(&resource), "tiny").unwrap();
    assert!(prepare(&resource, 0, false, |_| true).is_err());
    fs::write(disk(&resource), vec![0; 2 << 20]).unwrap();
    resource.volumes[0].size = Some(Size(2 << 20));
    let failure = prepare(&resource, 0, false, |_| true).unwrap_err();
    assert!(failure.message.contains("larger device"), "{failure}");
    let held = Device::open(&disk(&resource)).unwrap();
    let failure = prepare(&resource, 0, false, |_| true).unwrap_err();
    assert!(failure.message.contains("in use"), "{failure}");
    drop(held);
    resource.volumes[0].disk = dir.path().to_owned();
    assert!(prepare(&resource, 0, true, |_| true).is_err());
}

#[test]
fn meta_device_leaves_no_file_after_a_failure() {
    let dir = tempfile::tempdir().unwrap();
    let mut resource = sample_resource("r0", dir.path());
    resource.volumes[0].meta_disk = MetaDisk::External(dir.path().join("no/such/dir"));
    assert!(prepare(&resource, 0, false, |_| true).is_err());
    assert!(!disk(&resource).exists());
    resource.volumes[0].meta_disk = MetaDisk::Internal;
    resource.volumes[0].size = Some(Size(1 << 50));
    assert!(prepare(&resource, 0, false, |_| true).is_err());
    assert!(!disk(&resource).exists());
}

#[test]
fn meta_device_does_not_trust_old_meta_data_with_a_new_data_file() {
    let dir = tempfile::tempdir().unwrap();
    let mut resource = sample_resource("r0", dir.path());
    resource.volumes[0].meta_disk = MetaDisk::External(dir.path().join("meta"));
    prepare(&resource, 0, false, |_| true).unwrap();
    fs::remove_file(disk(&resource)).unwrap();
    let failure = prepare(&resource, 0, false, |_| true).unwrap_err();
    assert!(failure.message.contains("not there any more"), "{failure}");
    assert!(!disk(&resource).exists());
}

#[test]
fn meta_device_refuses_node_ids_whose_part_a_small_sector_could_tear() {
    let path = Path::new("/dev/vg/r0");
    for (peers, atomic_bytes, refused) in [
        (&[0, 5, 11][..], 512, false),
        (&[0, 12], 512, true),
        (&[31], 2048, true),
        (&[0, 12, 31], 4096, false),
        (&[12], 65_536, false),
    ] {
        let result = check_node_ids(peers, atomic_bytes, path);
        assert_eq!(result.is_err(), refused, "{peers:?} at {atomic_bytes}: {result:?}");
    }
    let message = check_node_ids(&[3, 12], 512, path).unwrap_err().message;
    assert!(message.contains("node 12") && message.contains("0 to 11"), "{message}");
    // What the medium under this test allows is what counts for a device.
    let dir = tempfile::tempdir().unwrap();
    let mut resource = sample_resource("r0", dir.path());
    resource.nodes[1].id = 12;
    let result = prepare(&resource, 0, false, |_| true);
    fs::write(disk(&resource), vec![0; 4 << 20]).unwrap();
    let atomic_bytes = Device::open(&disk(&resource)).unwrap().atomic_bytes().unwrap();
    assert_eq!(result.is_ok(), atomic_bytes >= 4096, "{atomic_bytes}: {result:?}");
}
