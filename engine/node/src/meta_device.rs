//! Backing devices before a resource starts: makes files, creates meta data, refuses to overwrite what may be wanted.
//!
//! Layout and contents of meta data are `zea-meta`'s (`ondisk-metadata.md` sections 3, 4 and 8); this module does the I/O.
//! A device is opened exclusively (`O_EXCL` for block devices, a file lock for files), as the data path does, so that
//! nothing that is attached is ever written to.

mod device;

use std::path::Path;

use zea_meta::foreign::{Signature, probe_foreign};
use zea_meta::{
    CreateParams, Format, Layout, LayoutParams, MAX_PEERS, MD_BLOCK_SIZE, PeerFlags, Placement, SECTOR_SIZE,
    SuperBlock, UUID_JUST_CREATED, WriteContent, create::create_md, detect,
};

use crate::api::Failure;
use crate::config::{ResourceFile, Size, Volume};
use device::Device;

/// Bitmap slots of new meta data: room to add nodes later costs 32 MiB per TiB and slot, a rewrite costs a full resync.
const SLOTS: u32 = 7;
/// Fewest bytes of a file that is made for external meta data (`ondisk-metadata.md` section 4).
const MIN_EXTERNAL_BYTES: u64 = 1 << 20;
/// Highest node id of which all that is known lies in the first 512 bytes of a super block, with the data's own UUID and flags
/// (`ondisk-metadata.md` section 3; `meta_superblock_torn_at_512_bytes_is_old_or_new`).
const MAX_NODE_ID_IN_FIRST_SECTOR: u8 = 11;

/// Makes the devices of a resource's volumes, as far as `which` names them, ready to attach on node `own`. Meta data that fits is kept; where there is none it is
/// created, and every other node gets a bitmap slot. Returns what was done, for people.
///
/// # Errors
/// A device cannot be used, or holds something that `force` would overwrite.
pub fn prepare(
    resource: &ResourceFile,
    own: u8,
    force: bool,
    which: impl Fn(u16) -> bool,
) -> Result<Vec<String>, Failure> {
    let peers: Vec<u8> = resource.peers(own).map(|peer| peer.id).collect();
    let mut notes = Vec::new();
    for volume in resource.volumes.iter().filter(|volume| which(volume.nr)) {
        let about = format!("volume {}", volume.nr);
        let preparation = Preparation { volume, own, peers: &peers, force };
        let note = preparation.run().map_err(|failure| failure.about(&about))?;
        notes.extend(note.map(|note| format!("{about}: {note}")));
    }
    Ok(notes)
}

/// Removes the super blocks of a resource's volumes.
///
/// # Errors
/// A device cannot be opened or written.
pub fn wipe(resource: &ResourceFile) -> Result<Vec<String>, Failure> {
    let mut notes = Vec::new();
    for volume in &resource.volumes {
        let path = volume.meta_disk.path().unwrap_or(&volume.disk);
        if !path.exists() {
            notes.push(format!("volume {}: {} is not there any more", volume.nr, path.display()));
            continue;
        }
        let device = Device::open(path)?;
        let offset = match placement(volume) {
            Placement::Internal => internal_super_block_offset(device.size_bytes()),
            Placement::FlexExternal | Placement::Indexed(_) => Some(0),
        };
        let Some(offset) = offset else { continue };
        if matches!(detect(&device.block(offset)?), Format::V09) {
            device.write(offset, &[0; MD_BLOCK_SIZE])?;
            device.sync()?;
            notes.push(format!("volume {}: meta data on {} is gone", volume.nr, path.display()));
        }
    }
    Ok(notes)
}

/// How the shard is to find the meta data of a volume.
pub fn placement(volume: &Volume) -> Placement {
    match volume.meta_disk.path() {
        None => Placement::Internal,
        Some(_) => Placement::FlexExternal,
    }
}

/// Where an internal super block lies: the last whole 4 KiB block.
fn internal_super_block_offset(size_bytes: u64) -> Option<u64> {
    let block = MD_BLOCK_SIZE as u64;
    (size_bytes / block * block).checked_sub(block)
}

struct Preparation<'a> {
    volume: &'a Volume,
    own: u8,
    peers: &'a [u8],
    force: bool,
}

impl Preparation<'_> {
    fn run(&self) -> Result<Option<String>, Failure> {
        let mut made = Vec::new();
        let result = self.make_files(&mut made).and_then(|()| {
            let data = Device::open(&self.volume.disk)?;
            let external = self.volume.meta_disk.path().map(Device::open).transpose()?;
            self.with_devices(&data, external.as_ref(), made.contains(&self.volume.disk.as_path()))
        });
        if result.is_err() {
            // A file that was made for nothing is in the way of the next try.
            made.iter().for_each(|path| drop(std::fs::remove_file(path)));
        }
        result
    }
}

impl<'a> Preparation<'a> {
    /// Makes the files that are missing, if the size is known, and notes them in `made`.
    fn make_files(&self, made: &mut Vec<&'a Path>) -> Result<(), Failure> {
        let disk = self.volume.disk.as_path();
        if !disk.exists() {
            let Some(size) = self.volume.size else {
                let path = disk.display();
                return Err(Failure::failed(format!(
                    "{path} does not exist: name an existing device or file, or give the size of a file to make ({path},size=10G)"
                )));
            };
            let bytes = match placement(self.volume) {
                Placement::Internal => self.backing_size_bytes(size)?,
                Placement::FlexExternal | Placement::Indexed(_) => size.0,
            };
            Device::create_file(disk, bytes)?;
            made.push(disk);
        }
        if let Some(meta) = self.volume.meta_disk.path().filter(|meta| !meta.exists()) {
            let sectors = Device::open(disk)?.size_bytes() / SECTOR_SIZE;
            // The sectors that internal meta data would take are what the external device needs.
            let internal = compute(&LayoutParams::internal(sectors, self.slots()))?;
            Device::create_file(meta, (u64::from(internal.md_size_sect) * SECTOR_SIZE).max(MIN_EXTERNAL_BYTES))?;
            made.push(meta);
        }
        Ok(())
    }

    /// Size of a backing device that has `size` left beside internal meta data.
    fn backing_size_bytes(&self, size: Size) -> Result<u64, Failure> {
        let wanted = size.sectors();
        let mut backing = wanted;
        loop {
            // Meta data grows with the device and by far less: this ends after two or three rounds.
            let layout = compute(&LayoutParams::internal(
                backing.max(zea_meta::placement::MIN_MD_DEVICE_SECTORS),
                self.slots(),
            ))?;
            if layout.usable_sectors >= wanted {
                return Ok(layout.params.backing_size_sectors * SECTOR_SIZE);
            }
            backing = wanted.max(backing) + (wanted - layout.usable_sectors);
        }
    }

    fn slots(&self) -> u32 {
        SLOTS.max(u32::try_from(self.peers.len()).expect("at most 31 peers")).min(MAX_PEERS)
    }

    /// `new_data`: the data file was just made, so that no meta data can be about it.
    fn with_devices(
        &self,
        data: &Device,
        external: Option<&Device>,
        new_data: bool,
    ) -> Result<Option<String>, Failure> {
        let meta = external.unwrap_or(data);
        check_node_ids(self.peers, meta.atomic_bytes()?, meta.path())?;
        let offset = match external {
            None => internal_super_block_offset(data.size_bytes()).ok_or_else(|| {
                Failure::failed(format!("{} is too small for a volume and its meta data", data.path().display()))
            })?,
            Some(_) => 0,
        };
        let block = meta.block(offset)?;
        if matches!(detect(&block), Format::V08 | Format::V08Unclean) && self.peers.len() == 1 && !new_data {
            // A disk of DRBD 8.4: the core attaches it as it is.
            return Ok(None);
        }
        if detect(&block) == Format::V09 {
            let reuse = match new_data {
                true => Err("it belongs to data that is not there any more".into()),
                false => self.reuse(&block, data, external),
            };
            match reuse {
                Ok(None) => return Ok(None),
                Ok(Some(block)) => {
                    meta.write(offset, block.as_slice())?;
                    meta.sync()?;
                    return Ok(Some("bitmap slots for the new nodes".into()));
                }
                Err(why) if !self.force => {
                    return Err(Failure::refused(
                        0,
                        format!(
                            "{} has DRBD meta data that does not fit: {why}; use another device, or overwrite it with --force",
                            meta.path().display()
                        ),
                    ));
                }
                Err(_) => {}
            }
        } else if !self.force {
            refuse_foreign(data)?;
            external.map_or(Ok(()), refuse_foreign)?;
        }
        self.create(data, external)
    }

    /// Keeps meta data that is this node's. Returns the block to write if a node needs a slot.
    fn reuse(
        &self,
        block: &[u8],
        data: &Device,
        external: Option<&Device>,
    ) -> Result<Option<Box<[u8; MD_BLOCK_SIZE]>>, String> {
        let mut found = SuperBlock::decode(block).map_err(|error| error.to_string())?;
        let params = LayoutParams {
            max_peers: found.bm_max_peers,
            bytes_per_bit: found.bm_bytes_per_bit,
            al_stripes: found.al_stripes,
            al_stripe_size_4k: found.al_stripe_size_4k,
            ..self.params(data, external)
        };
        let layout = Layout::compute(&params).map_err(|error| error.to_string())?;
        layout.check(&found, self.own).map_err(|error| error.to_string())?;
        self.check_size(&layout).map_err(|failure| failure.message)?;
        let before = found.clone();
        for &peer in self.peers {
            if found.slot_of(peer).is_none() {
                found.assign_slot(peer).map_err(|error| error.to_string())?;
                if found.current_uuid != UUID_JUST_CREATED {
                    // Nobody knows what a new node has: every block counts as different.
                    found.peers[usize::from(peer)].flags.insert(PeerFlags::FULL_SYNC);
                }
            }
        }
        if found == before {
            return Ok(None);
        }
        let mut block = Box::new([0; MD_BLOCK_SIZE]);
        found.encode(&mut block);
        Ok(Some(block))
    }

    fn params(&self, data: &Device, external: Option<&Device>) -> LayoutParams {
        let sectors = data.size_bytes() / SECTOR_SIZE;
        match external {
            None => LayoutParams::internal(sectors, self.slots()),
            Some(meta) => LayoutParams::flex_external(sectors, meta.size_bytes() / SECTOR_SIZE, self.slots()),
        }
    }

    fn check_size(&self, layout: &Layout) -> Result<(), Failure> {
        let usable = Size(layout.usable_sectors * SECTOR_SIZE);
        match self.volume.size {
            Some(size) if size > usable => Err(Failure::failed(format!(
                "{} has room for {usable} bytes beside its meta data, and the volume is to have {size}: \
                 use a larger device or a smaller size",
                self.volume.disk.display()
            ))),
            _ => Ok(()),
        }
    }

    fn create(&self, data: &Device, external: Option<&Device>) -> Result<Option<String>, Failure> {
        let meta = external.unwrap_or(data);
        let params = CreateParams {
            node_id: Some(self.own),
            peers: self.peers.to_vec(),
            ..CreateParams::new(self.params(data, external))
        };
        let fail = |error: &dyn std::fmt::Display| Failure::failed(format!("{}: {error}", meta.path().display()));
        let mut created = create_md(&params).map_err(|error| fail(&error))?;
        self.check_size(&created.layout)?;
        created.super_block.device_uuid = getrandom::u64().map_err(|error| fail(&error))?;
        let mut block = [0; MD_BLOCK_SIZE];
        created.super_block.encode(&mut block);
        let (_, before) = created.writes.split_last().expect("the super block is written last");
        for write in before {
            match &write.content {
                WriteContent::Bytes(bytes) => meta.write(write.offset_bytes, bytes)?,
                WriteContent::Zeros(len) => meta.write_zeros(write.offset_bytes, *len)?,
            }
        }
        meta.sync()?;
        meta.write(created.layout.super_block_offset_bytes, &block)?;
        meta.sync()?;
        Ok(Some(format!("new meta data on {}", meta.path().display())))
    }
}

fn compute(params: &LayoutParams) -> Result<Layout, Failure> {
    Layout::compute(params).map_err(|error| Failure::failed(error.to_string()))
}

/// Refuses nodes whose part of a super block a loss of power could tear from the rest: a device that writes fewer than 4 KiB at
/// once may keep the first 512 bytes of the new super block and what follows of the old one.
fn check_node_ids(peers: &[u8], atomic_bytes: u32, path: &Path) -> Result<(), Failure> {
    let high = peers.iter().find(|id| **id > MAX_NODE_ID_IN_FIRST_SECTOR);
    match high {
        Some(id) if (atomic_bytes as usize) < MD_BLOCK_SIZE => Err(Failure::refused(
            0,
            format!(
                "{} has sectors of {atomic_bytes} bytes, and a loss of power may tear what its meta data says of node {id}: choose \
                 node ids 0 to {MAX_NODE_ID_IN_FIRST_SECTOR}, or a device with physical sectors of 4 KiB",
                path.display()
            ),
        )),
        _ => Ok(()),
    }
}

/// Refuses a device on which something is recognised.
fn refuse_foreign(device: &Device) -> Result<(), Failure> {
    let found = probe_foreign(device.size_bytes(), &mut |offset, buffer: &mut [u8]| device.read(offset, buffer))?;
    if found.is_empty() {
        return Ok(());
    }
    let list: Vec<String> =
        found.iter().map(|Signature { name, offset_bytes }| format!("{name} (at byte {offset_bytes})")).collect();
    Err(Failure::refused(
        0,
        format!(
            "{} does not look empty, found: {}; if nobody needs that, overwrite it with --force, else use another device",
            device.path().display(),
            list.join(", ")
        ),
    ))
}

#[cfg(test)]
mod tests;
