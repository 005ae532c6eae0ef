//! How fast a resync goes: DRBD's controller and its limits, without a clock (handshake-and-states.md 6.7).
//!
//! Without a plan a target keeps a window of requests full. A plan ([`ResyncOptions::plan_ahead`]) decides in steps of 0.1 s how much is
//! asked for, so that a certain amount is on its way; 0 stands for a fixed rate. Whatever is planned is subject to two limits:
//! [`ResyncOptions::max_rate_kib`] always, [`ResyncOptions::min_rate_kib`] while an application uses the volume. The last one counts on both nodes:
//! the source of a resync serves no more than that, the target asks for no more.

use std::collections::VecDeque;

use rkyv::{Archive, Deserialize, Serialize};

use crate::io::Time;

/// A step of the plan, and the shortest time for which a limit is an average.
const STEP_MS: u64 = 100;
/// Sectors of an application within so many milliseconds that are not taken for use (DRBD has the same number).
const IDLE_SECTORS: u64 = 64;
const USE_MS: u64 = 200;
/// A rate is shown as the average over two of these.
const MARK_MS: u64 = 3_000;

/// What a resync may take. Rates in KiB/s; names are DRBD's without their `c-`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Archive, Serialize, Deserialize)]
pub struct ResyncOptions {
    /// Over how many tenths of a second the plan corrects what it misses. 0: a fixed rate, [`ResyncOptions::resync_rate_kib`]. `None`: no plan.
    pub plan_ahead: Option<u32>,
    /// So many tenths of a second a request is to be on its way, where `fill_target` does not say how much is.
    pub delay_target: u32,
    /// Sectors that are to be on their way; also without a plan. 0: see `delay_target`.
    pub fill_target_sectors: u64,
    /// Never more; 0: no limit.
    pub max_rate_kib: u64,
    /// No more while an application uses the volume; 0: its I/O makes no difference.
    pub min_rate_kib: u64,
    /// The fixed rate, and what a plan begins with.
    pub resync_rate_kib: u64,
}

impl Default for ResyncOptions {
    fn default() -> Self {
        ResyncOptions {
            plan_ahead: None,
            delay_target: 10,
            fill_target_sectors: 0,
            max_rate_kib: 0,
            min_rate_kib: 0,
            resync_rate_kib: 250,
        }
    }
}

impl ResyncOptions {
    /// The limit that counts now, in KiB/s; `None`: there is none.
    pub(crate) fn limit(&self, in_use: bool) -> Option<u64> {
        let min = (in_use && self.min_rate_kib > 0).then_some(self.min_rate_kib);
        let max = (self.max_rate_kib > 0).then_some(self.max_rate_kib);
        min.into_iter().chain(max).min()
    }
}

/// Whether an application uses a volume on this node.
#[derive(Debug, Clone, Copy, Default, Archive, Serialize, Deserialize)]
pub(crate) struct Use {
    since: u64,
    sectors: u64,
    before: u64,
}

impl Use {
    pub(crate) fn note(&mut self, now: Time, sectors: u64) {
        self.turn(now);
        self.sectors += sectors.max(8);
    }

    pub(crate) fn is_in_use(&mut self, now: Time) -> bool {
        self.turn(now);
        self.before.max(self.sectors) > IDLE_SECTORS
    }

    fn turn(&mut self, now: Time) {
        let span = Time(0).plus_ms(USE_MS).0;
        let past = now.0.saturating_sub(self.since);
        if past >= span {
            self.before = if past < 2 * span { self.sectors } else { 0 };
            (self.sectors, self.since) = (0, now.0);
        }
    }
}

/// A limit that holds on average over a step.
#[derive(Debug, Clone, Copy, Default, Archive, Serialize, Deserialize)]
pub(crate) struct Bucket {
    /// Sectors that may still be moved; negative after a request that was longer.
    sectors: i64,
    at: u64,
}

impl Bucket {
    /// Sectors that may be moved now, or when some may.
    pub(crate) fn ready(&mut self, now: Time, rate_kib: u64) -> Result<u64, Time> {
        let step = Time(0).plus_ms(STEP_MS).0;
        let second = step * 1_000 / STEP_MS;
        let most = i64::try_from(2 * rate_kib * STEP_MS / 1_000).unwrap_or(i64::MAX).max(1);
        let past = now.0.saturating_sub(self.at);
        let gained = u128::from(past) * u128::from(2 * rate_kib) / u128::from(second);
        let gained = i64::try_from(gained).unwrap_or(i64::MAX);
        if gained > 0 {
            (self.sectors, self.at) = (self.sectors.saturating_add(gained).min(most), now.0);
        }
        if self.sectors > 0 {
            return Ok(self.sectors.unsigned_abs());
        }
        // A quarter of a step at once, not block by block.
        let lacks = u128::from(self.sectors.unsigned_abs() + most.unsigned_abs().div_ceil(4)) * u128::from(second);
        let wait = u64::try_from(lacks.div_ceil(u128::from(2 * rate_kib))).unwrap_or(u64::MAX);
        Err(Time(self.at.saturating_add(wait).max(now.0 + 1)))
    }

    pub(crate) fn take(&mut self, sectors: u64) {
        self.sectors = self.sectors.saturating_sub(i64::try_from(sectors).unwrap_or(i64::MAX));
    }
}

/// What a target asks for.
#[derive(Debug, Default, Archive, Serialize, Deserialize)]
pub(crate) struct Pace {
    limit: Bucket,
    /// Corrections of the steps to come, oldest first, and their sum.
    plan: VecDeque<i64>,
    planned: i64,
    /// When this step began; what has arrived since, and what may still be asked for in it.
    step: Option<Time>,
    arrived: u64,
    left: i64,
}

impl Pace {
    /// Sectors that may be asked for now, at once and at most (0: when something has arrived), or when to look again.
    pub(crate) fn ask(
        &mut self,
        now: Time,
        options: &ResyncOptions,
        in_use: bool,
        in_flight: u64,
    ) -> Result<u64, Time> {
        let most = match options.limit(in_use) {
            Some(rate) => self.limit.ready(now, rate)?,
            None => u64::MAX,
        };
        let Some(ahead) = options.plan_ahead else {
            let fill = options.fill_target_sectors;
            return Ok(if fill == 0 || in_flight == 0 { most } else { most.min(fill.saturating_sub(in_flight)) });
        };
        let end = self.step.map(|t| t.plus_ms(STEP_MS));
        let over = end.is_none_or(|end| now >= end);
        // Nothing is on its way: why wait?
        let idle = in_flight == 0 && self.left <= 0;
        if over || idle {
            self.left = self.plan_step(now, options, ahead, in_flight);
            (self.step, self.arrived) = (Some(now), 0);
        }
        if self.left > 0 {
            Ok(most.min(self.left.unsigned_abs()))
        } else {
            Err(end.filter(|end| *end > now).unwrap_or(now.plus_ms(STEP_MS)))
        }
    }

    /// What may be asked for in the step that begins.
    fn plan_step(&mut self, now: Time, options: &ResyncOptions, ahead: u32, in_flight: u64) -> i64 {
        let signed = |n: u64| i64::try_from(n).unwrap_or(i64::MAX);
        let fixed = signed(2 * options.resync_rate_kib * STEP_MS / 1_000).max(8);
        if ahead == 0 {
            return fixed;
        }
        let steps = signed(u64::from(ahead));
        self.plan.resize(ahead as usize, 0);
        let past_ms = self.step.map_or(STEP_MS, |t| now.ms_since(t)).max(1);
        let want = match (self.step, options.fill_target_sectors) {
            (None, _) => fixed * steps,
            (_, 0) => signed(self.arrived * u64::from(options.delay_target) * STEP_MS / past_ms),
            (_, fill) => signed(fill),
        };
        let correction = (want - signed(in_flight) - self.planned) / steps;
        self.plan.iter_mut().for_each(|slot| *slot += correction);
        self.planned += correction * steps;
        let now_due = self.plan.pop_front().unwrap_or(0);
        self.plan.push_back(0);
        self.planned -= now_due;
        // One request goes out in any case: a plan that has come to nothing would learn nothing more.
        signed(self.arrived).saturating_add(now_due).max(if in_flight == 0 { 8 } else { 0 })
    }

    pub(crate) fn asked(&mut self, sectors: u64) {
        self.limit.take(sectors);
        self.left -= i64::try_from(sectors).unwrap_or(i64::MAX);
    }

    pub(crate) fn arrived(&mut self, sectors: u64) {
        self.arrived += sectors;
    }
}

/// Sectors that a resync has moved, for observers.
#[derive(Debug, Clone, Copy, Default, Archive, Serialize, Deserialize)]
pub(crate) struct Meter {
    marks: [(u64, u64); 2],
    sectors: u64,
}

impl Meter {
    /// A resync begins.
    pub(crate) fn begin(&mut self, now: Time) {
        *self = Meter { marks: [(now.0, 0); 2], sectors: 0 };
    }

    pub(crate) fn moved(&mut self, now: Time, sectors: u64) {
        self.sectors += sectors;
        if now.0.saturating_sub(self.marks[1].0) >= Time(0).plus_ms(MARK_MS).0 {
            self.marks = [self.marks[1], (now.0, self.sectors)];
        }
    }

    /// KiB/s of late.
    pub(crate) fn rate_kib(&self, now: Time) -> u64 {
        let (at, before) = self.marks[0];
        let past_ms = now.ms_since(Time(at)).max(1);
        (self.sectors - before) * 1_000 / past_ms / 2
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ms(ms: u64) -> Time {
        Time(0).plus_ms(1_000_000 + ms)
    }

    /// What a source answers at once gets through in a second, with this much of an application's I/O beside it.
    fn in_a_second(options: &ResyncOptions, in_use: bool, request: u64) -> u64 {
        let (mut pace, mut sum) = (Pace::default(), 0);
        for now in 0..2_000 {
            while let Ok(most) = pace.ask(ms(now), options, in_use, 0) {
                let sectors = request.min(most);
                pace.asked(sectors);
                pace.arrived(sectors);
                sum += if now >= 1_000 { sectors } else { 0 };
                if options.limit(in_use).is_none() {
                    break;
                }
            }
        }
        sum / 2
    }

    #[test]
    fn resync_limits_hold_on_average() {
        for request in [8, 64, 2048] {
            for max_rate_kib in [1_000, 10_000, 100_000] {
                let options = ResyncOptions { max_rate_kib, min_rate_kib: 500, ..ResyncOptions::default() };
                let rate = in_a_second(&options, false, request);
                let near = max_rate_kib * 9 / 10..=max_rate_kib * 11 / 10;
                assert!(near.contains(&rate), "{request}: {rate} KiB/s of {max_rate_kib}");
                let beside = in_a_second(&options, true, request);
                assert!(
                    beside <= 500 + request && beside + request >= 450,
                    "{request}: {beside} KiB/s beside an application"
                );
            }
        }
        assert_eq!(ResyncOptions::default().limit(true), None);
    }

    #[test]
    fn resync_plan_keeps_the_fill_target_on_its_way() {
        // The link takes 20 sectors in a millisecond, 10 MiB/s, and each request needs 5 ms more.
        let options = ResyncOptions { plan_ahead: Some(20), fill_target_sectors: 2_000, ..ResyncOptions::default() };
        let (mut pace, mut sent) = (Pace::default(), VecDeque::new());
        let (mut in_flight, mut seen) = (0, Vec::new());
        let mut free_at = 0;
        for now in 0..30_000 {
            while let Some((_, sectors)) = sent.pop_front_if(|(at, _): &mut (u64, u64)| *at + 5 <= now) {
                in_flight -= sectors;
                pace.arrived(sectors);
            }
            while let Ok(most) = pace.ask(ms(now), &options, false, in_flight) {
                let sectors = most.clamp(20, 60);
                pace.asked(sectors);
                in_flight += sectors;
                free_at = now.max(free_at) + sectors / 20;
                sent.push_back((free_at, sectors));
            }
            seen.push(in_flight);
        }
        let late = &seen[20_000..];
        let (least, most) = (late.iter().min().copied(), late.iter().max().copied());
        assert!(least > Some(500) && most < Some(6_000), "{least:?} to {most:?} sectors on their way");
    }

    #[test]
    fn resync_fixed_rate_asks_for_its_share_of_a_step() {
        let options = ResyncOptions { plan_ahead: Some(0), resync_rate_kib: 4_096, ..ResyncOptions::default() };
        let mut pace = Pace::default();
        assert_eq!(pace.ask(ms(0), &options, false, 0), Ok(819));
        pace.asked(1_024);
        assert_eq!(pace.ask(ms(50), &options, false, 1_024), Err(ms(100)));
        pace.arrived(1_024);
        assert_eq!(pace.ask(ms(55), &options, false, 0), Ok(819));
    }

    #[test]
    fn resync_use_of_a_volume_is_noticed_and_forgotten() {
        let mut used = Use::default();
        assert!(!used.is_in_use(ms(0)));
        used.note(ms(1), 64);
        assert!(!used.is_in_use(ms(2)));
        used.note(ms(3), 1);
        assert!(used.is_in_use(ms(4)) && used.is_in_use(ms(250)));
        assert!(!used.is_in_use(ms(700)));
    }

    #[test]
    fn resync_rate_is_that_of_late() {
        let mut meter = Meter::default();
        meter.begin(ms(0));
        for now in (0..10_000).step_by(10) {
            meter.moved(ms(now), if now < 5_000 { 20 } else { 200 });
        }
        let rate = meter.rate_kib(ms(10_000));
        assert!((9_000..=10_500).contains(&rate), "{rate} KiB/s");
    }
}
