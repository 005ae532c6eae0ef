//! How fast resyncs go: what `[disk]` says of it, as the core wants it.

use zea_core::config::ResyncOptions;

use super::check::{Check, Problem, Step};
use super::model::Disk;
use super::units::Size;

/// Most tenths of a second that a controller plans ahead (DRBD's bound).
const MAX_TENTHS: u32 = 300;

impl Disk {
    /// As the core wants them.
    pub fn resync_options(&self) -> ResyncOptions {
        let usual = ResyncOptions::default();
        let kib = |rate: Size| (rate.0 / 1024).max(u64::from(rate.0 > 0));
        ResyncOptions {
            plan_ahead: self.c_plan_ahead,
            delay_target: self.c_delay_target.unwrap_or(usual.delay_target),
            fill_target_sectors: self.c_fill_target.map_or(0, Size::sectors),
            max_rate_kib: self.c_max_rate.map_or(0, kib),
            min_rate_kib: kib(self.c_min_rate),
            resync_rate_kib: self.resync_rate.map_or(usual.resync_rate_kib, kib),
        }
    }

    /// Numbers that are out of range.
    pub(super) fn check_resync(&self) -> Result<(), Problem> {
        for (key, value) in [("c-plan-ahead", self.c_plan_ahead), ("c-delay-target", self.c_delay_target)] {
            if let Some(value) = value.filter(|value| *value > MAX_TENTHS) {
                return Err(Problem::new(
                    &[Step::Key("disk"), Step::Key(key)],
                    format!("{value} is out of range"),
                    format!("choose 0 to {MAX_TENTHS} tenths of a second"),
                ));
            }
        }
        Ok(())
    }
}

impl Check<'_> {
    /// A volume that is resynced after itself, by way of others, would never be.
    pub(super) fn check_resync_order(self) -> Result<(), Problem> {
        let volumes = &self.file.volumes;
        let before = |nr: u16| volumes.iter().find(|volume| volume.nr == nr).and_then(|volume| volume.resync_after);
        for (index, volume) in volumes.iter().enumerate() {
            let at = [Step::Key("volume"), Step::Index(index), Step::Key("resync-after")];
            let Some(first) = volume.resync_after else { continue };
            if !volumes.iter().any(|other| other.nr == first) {
                let help = "name another volume of this resource, or leave it out";
                return Err(Problem::new(&at, format!("there is no volume {first}"), help));
            }
            let mut chain = std::iter::successors(Some(first), |nr| before(*nr)).take(volumes.len());
            if chain.any(|nr| nr == volume.nr) {
                let what = format!("volume {} would be resynced after itself", volume.nr);
                return Err(Problem::new(&at, what, "let the volumes follow each other in one direction"));
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::super::model::ResourceFile;
    use super::*;

    #[test]
    fn config_resync_rates_are_sizes_per_second() {
        let read = |text: &str| toml::from_str::<Disk>(text);
        let text = "c-max-rate = \"100M\"\nc-min-rate = \"512\"\nc-fill-target = \"1M\"\nc-plan-ahead = 20\n";
        let expected = ResyncOptions {
            plan_ahead: Some(20),
            fill_target_sectors: 2048,
            max_rate_kib: 102_400,
            min_rate_kib: 1,
            ..ResyncOptions::default()
        };
        assert_eq!(read(text).unwrap().resync_options(), expected);
        assert_eq!(read("").unwrap().resync_options().min_rate_kib, 40_960);
        assert_eq!(read("c-min-rate = \"0\"").unwrap().resync_options(), ResyncOptions::default());
        assert!(read("c-max-rate = \"fast\"").is_err());
        assert!(read("c-plan-ahead = 301").unwrap().check_resync().is_err());
    }

    #[test]
    fn config_resync_order_has_no_circles() {
        let volume = |nr: u16, after: &str| format!("[[volume]]\nnr = {nr}\ndisk = \"/dev/vg/{nr}\"\n{after}\n");
        let node = "[[node]]\nid = 0\nname = \"alpha\"\naddress = \"10.0.0.1:7789\"\n";
        let check = |orders: [&str; 3]| {
            let volumes: String = (0..).zip(orders).map(|(nr, after)| volume(nr, after)).collect();
            let file: ResourceFile = toml::from_str(&format!("name = \"r0\"\n{node}{volumes}")).unwrap();
            Check::new(&file).all()
        };
        assert_eq!(check(["", "resync-after = 0", "resync-after = 1"]), Ok(()));
        assert_eq!(check(["resync-after = 1", "resync-after = 2", ""]), Ok(()));
        for orders in [
            ["resync-after = 0", "", ""],
            ["resync-after = 1", "resync-after = 2", "resync-after = 0"],
            ["resync-after = 1", "resync-after = 2", "resync-after = 1"],
            ["", "", "resync-after = 7"],
        ] {
            assert!(check(orders).is_err(), "{orders:?}");
        }
    }
}
