//! One round: load, a fault at a random moment, recovery and comparison.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;
use std::time::{Duration, Instant};

use anyhow::Result;

use crate::cluster::PUBLISH_DEADLINE;
use crate::fault::{Fault, RECOVERY_TIMEOUT, Visible};
use crate::feed::Feed;
use crate::load::WayLoad;
use crate::prober::{Probe, ProbeOutcome, Prober, Probes, RefusalKind};
use crate::rng::Rng;
use crate::subject::Subject;

/// How long the events of the prober and the fault may take to be counted after all others.
const SETTLE: Duration = Duration::from_secs(90);

/// How much later than the deadline a 503 may come on a busy machine.
const LATE: Duration = Duration::from_secs(2);

/// How much memory each process may use, in megabytes.
const MEMORY: [(&str, u64); 4] = [("ingest", 400), ("worker", 512), ("query", 128), ("standalone", 512)];

/// The least percentage of events that are accepted while the broker is slow, but fast enough.
const ACCEPTED_PERCENT: usize = 99;

/// The greatest percentage of events that are refused with an unknown outcome while the broker is too slow.
const UNSURE_PERCENT: usize = 5;

/// The result of one round.
#[derive(Debug, Default)]
pub(crate) struct RoundResult {
    /// Events that were acknowledged.
    pub(crate) acknowledged: u64,
    pub(crate) lost: u64,
    pub(crate) duplicated: u64,
    /// Requests of the prober that were answered with 503.
    pub(crate) refused: usize,
    /// How long after the fault requests were answered as usual, and new events were counted.
    pub(crate) flowing: Duration,
    pub(crate) counting: Duration,
    /// The services of which `/readyz` turned red.
    pub(crate) red: BTreeSet<&'static str>,
    /// The most memory of each service, in megabytes.
    pub(crate) peaks: BTreeMap<&'static str, u64>,
    pub(crate) note: Option<String>,
    pub(crate) failures: Vec<String>,
}

/// One round of one fault.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Round {
    pub(crate) fault: Fault,
    pub(crate) number: u32,
    /// The seed of all rounds.
    pub(crate) seed: u64,
}

impl Round {
    /// A name for this round, used in its domains and keys.
    fn label(self) -> String {
        format!("{}-{}", self.fault.name(), self.number)
    }

    /// Starts the load of this round.
    pub(crate) async fn load(self, subject: &Subject) -> Result<Vec<WayLoad>> {
        WayLoad::start_all(subject, Rng::new(self.seed, &format!("load of {}", self.label()))).await
    }

    /// Runs the round under its load. The load of the next round starts while this one is compared, and no
    /// fault begins before the comparison is over.
    ///
    /// # Errors
    ///
    /// When it could not be completed.
    pub(crate) async fn run(
        self,
        subject: &mut Subject,
        loads: Vec<WayLoad>,
        next: Option<Self>,
    ) -> Result<(RoundResult, Option<Vec<WayLoad>>)> {
        let (fault, label) = (self.fault, self.label());
        let mut rng = Rng::new(self.seed, &label);
        subject.begin_anew();
        let prober = Prober::start(subject, &label);
        let feed = Feed::start(subject, &label);
        rng.pause(500, 1500).await;
        let begun = Instant::now();
        let lifted = fault.inflict(subject, &mut rng, &label).await?;
        let mut result =
            RoundResult { note: lifted.note, failures: lifted.failures, ..RoundResult::default() };
        recover(subject, &prober, lifted.at, &mut result).await;
        result.failures.extend(feed.end(subject).await?);
        let probes = prober.stop().await;
        let seen = subject.seen();
        let begin_next = async {
            match next {
                Some(next) if result.failures.is_empty() => next.load(subject).await.map(Some),
                _ => Ok(None),
            }
        };
        let (sent, next) = tokio::join!(WayLoad::end_all(loads), begin_next);
        let sent = sent.unwrap_or_else(|reason| {
            result.failures.push(format!("{reason:#}"));
            Vec::new()
        });
        for sent in sent {
            result.acknowledged += sent.acknowledged;
            result.lost += sent.lost;
            result.duplicated += sent.duplicated;
            result.failures.extend(sent.wrong);
            if fault.is_routine() && sent.trouble > 0 {
                result.failures.push(format!("{} had {} failures and retries", sent.name, sent.trouble));
            }
        }
        judge(fault, &probes, begun..lifted.at, &mut result);
        let mut expected = probes.expected;
        expected.merge(lifted.expected);
        let difference =
            expected.compare_with(async |domains: &[String]| subject.counts(domains).await, SETTLE).await?;
        if difference.lost + difference.duplicated > 0 {
            result.failures.push(format!("events of the prober and the fault: {difference:?}"));
        }
        result.acknowledged += expected.least();
        result.lost += difference.lost;
        result.duplicated += difference.duplicated;
        result.failures.extend(seen.dead.into_iter().take(3));
        for service in fault.reddens() {
            if !seen.red.contains(service) {
                result.failures.push(format!("/readyz of {service} did not turn red"));
            }
        }
        let without_peak = seen.without_peak.iter();
        result.failures.extend(without_peak.map(|service| format!("the memory of {service} cannot be read")));
        result.red = seen.red;
        result.peaks = seen.peaks;
        for (service, limit) in MEMORY {
            let peak = result.peaks.get(service).copied().unwrap_or_default();
            if peak > limit {
                result.failures.push(format!("{service} used {peak} MB; the limit is {limit}"));
            }
        }
        Ok((result, next?))
    }
}

/// Waits until requests are answered, events are counted and services are ready.
async fn recover(subject: &Subject, prober: &Prober, lifted: Instant, result: &mut RoundResult) {
    let (mut flowing, mut counting) = (None, None);
    loop {
        flowing = flowing.or_else(|| prober.flow(lifted));
        if counting.is_none() {
            let sent = prober.acknowledged_after(lifted);
            let counted = subject.counts(&sent).await;
            counting = counted.is_ok_and(|counted| !counted.is_empty()).then(|| lifted.elapsed());
        }
        let not_ready = subject.not_ready().await;
        if flowing.is_some() && counting.is_some() && not_ready.is_none() {
            break;
        }
        if lifted.elapsed() > RECOVERY_TIMEOUT {
            result.failures.push(format!(
                "not well again after {RECOVERY_TIMEOUT:?}: 2xx after {flowing:?}, counted after {counting:?}, \
                {not_ready:?}"
            ));
            break;
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    result.flowing = flowing.unwrap_or_else(|| lifted.elapsed());
    result.counting = counting.unwrap_or_else(|| lifted.elapsed());
}

/// Compares the answers with what clients may notice of the fault.
fn judge(fault: Fault, probes: &Probes, lasted: Range<Instant>, result: &mut RoundResult) {
    for (kind, probes, visible) in
        [("PUT", &probes.puts, fault.visible_to_senders()), ("GET", &probes.gets, fault.visible_to_readers())]
    {
        let refused = probes.iter().filter(|probe| matches!(probe.answer, ProbeOutcome::Refused(_))).count();
        result.refused += refused;
        let certain = matches!(visible, Visible::CertainRefusals | Visible::CertainlyUncounted);
        if certain && refused == 0 {
            result.failures.push(format!("no {kind} was answered with 503"));
        }
        let meanwhile: Vec<&Probe> = probes.iter().filter(|probe| lasted.contains(&probe.sent)).collect();
        let share = |of: fn(&ProbeOutcome) -> bool| {
            let count = meanwhile.iter().filter(|probe| of(&probe.answer)).count();
            (count, count * 100 / meanwhile.len().max(1))
        };
        match visible {
            Visible::Few => {
                let (accepted, percent) = share(|answer| *answer == ProbeOutcome::Good);
                let accepted =
                    format!("{accepted} of {} {kind}s were accepted during the fault", meanwhile.len());
                if percent < ACCEPTED_PERCENT {
                    result.failures.push(accepted);
                } else {
                    result.note.get_or_insert(accepted);
                }
            }
            Visible::Uncounted => {
                let (refused, _) = share(|answer| matches!(answer, ProbeOutcome::Refused(_)));
                let (unsure, percent) =
                    share(|answer| *answer == ProbeOutcome::Refused(RefusalKind::MaybeCounted));
                let words = format!(
                    "of {} {kind}s {refused} were refused meanwhile, {unsure} of them perhaps counted",
                    meanwhile.len()
                );
                if percent > UNSURE_PERCENT {
                    result.failures.push(words);
                } else {
                    result.note.get_or_insert(words);
                }
            }
            _ => {}
        }
        let wrong: Vec<&Probe> = probes.iter().filter(|probe| !explains(visible, probe)).collect();
        if let Some(first) = wrong.first() {
            result.failures.push(format!(
                "{} of {} {kind}s were answered as they should not be, the first {:?} after {:?}",
                wrong.len(),
                probes.len(),
                first.answer,
                first.took
            ));
        }
    }
}

fn explains(visible: Visible, probe: &Probe) -> bool {
    match probe.answer {
        ProbeOutcome::Good => true,
        ProbeOutcome::Refused(RefusalKind::MaybeCounted) if visible == Visible::CertainlyUncounted => false,
        ProbeOutcome::Refused(_) => visible != Visible::Nothing && probe.took < PUBLISH_DEADLINE + LATE,
        ProbeOutcome::Lost(_) => visible == Visible::Silence,
        ProbeOutcome::Wrong(_) | ProbeOutcome::None => false,
    }
}
