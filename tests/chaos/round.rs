//! One round: load, a fault at a random moment, the way back, and the comparison.

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use crate::chance::Chance;
use crate::fault::{Fault, PATIENCE, Visible};
use crate::ledger::counters;
use crate::load::Load;
use crate::prober::{Answer, Probe, Prober, Probes};
use crate::stage::{PUBLISH_DEADLINE, Stage};

/// What went wrong, for a person.
pub(crate) type Result<T> = std::result::Result<T, String>;

/// How long this program's own events may take to be counted when everything else has been.
const SETTLE: Duration = Duration::from_secs(90);

/// How much later than its deadline a 503 may come, on a machine that does ten other things.
const LATE: Duration = Duration::from_secs(2);

/// What one round came to.
#[derive(Debug, Default)]
pub(crate) struct Act {
    /// Events that were acknowledged.
    pub(crate) acknowledged: u64,
    pub(crate) lost: u64,
    pub(crate) duplicated: u64,
    /// Requests of the prober that were answered with 503.
    pub(crate) refused: usize,
    /// From the end of the fault until 2xx flowed again, and until events sent after it were counted.
    pub(crate) flowing: Duration,
    pub(crate) counting: Duration,
    /// The services of which `/readyz` turned red.
    pub(crate) red: BTreeSet<&'static str>,
    pub(crate) note: Option<String>,
    pub(crate) failures: Vec<String>,
}

/// One round of one fault.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Round {
    pub(crate) fault: Fault,
    pub(crate) number: u32,
    /// What the seed of all rounds is.
    pub(crate) seed: u64,
}

impl Round {
    /// A name for what is sent in this round.
    fn label(self) -> String {
        format!("{}-{}", self.fault.name(), self.number)
    }

    /// The load of this round.
    pub(crate) async fn load(self, stage: &Stage) -> Result<Vec<Load>> {
        Load::start_all(stage, Chance::new(self.seed, &format!("load of {}", self.label()))).await
    }

    /// Plays it under its load. While that is compared, the load of the next round begins; nothing is broken again
    /// before the comparison is over.
    ///
    /// # Errors
    ///
    /// When it could not be played to its end.
    pub(crate) async fn play(
        self,
        stage: &mut Stage,
        loads: Vec<Load>,
        next: Option<Self>,
    ) -> Result<(Act, Option<Vec<Load>>)> {
        let (fault, label) = (self.fault, self.label());
        let mut chance = Chance::new(self.seed, &label);
        stage.watch.take();
        let prober = Prober::start(stage, &label);
        chance.pause(500, 1500).await;
        let lifted = fault.inflict(stage, &mut chance, &label).await?;
        let mut act = Act { note: lifted.note, failures: lifted.failures, ..Act::default() };
        recover(stage, &prober, lifted.at, &mut act).await;
        let probes = prober.stop().await;
        let seen = stage.watch.take();
        let begin_next = async {
            match next {
                Some(next) if act.failures.is_empty() => next.load(stage).await.map(Some),
                _ => Ok(None),
            }
        };
        let (sent, next) = tokio::join!(Load::end_all(loads), begin_next);
        for sent in sent? {
            act.acknowledged += sent.acknowledged;
            act.lost += sent.lost;
            act.duplicated += sent.duplicated;
            act.failures.extend(sent.wrong);
            if fault.is_routine() && sent.trouble > 0 {
                act.failures.push(format!("{} had to send {} times again, or more", sent.name, sent.trouble));
            }
        }
        judge(fault, &probes, &mut act);
        let mut ledger = probes.ledger;
        ledger.merge(lifted.ledger);
        let difference = ledger.compare(&stage.primary, SETTLE).await?;
        if difference.lost + difference.duplicated > 0 {
            act.failures.push(format!("of this program's own events: {difference:?}"));
        }
        act.acknowledged += ledger.least().unsigned_abs();
        act.lost += difference.lost.unsigned_abs();
        act.duplicated += difference.duplicated.unsigned_abs();
        act.failures.extend(seen.dead.into_iter().take(3));
        for service in fault.reddens() {
            if !seen.red.contains(service) {
                act.failures.push(format!("/readyz of {service} did not turn red"));
            }
        }
        act.red = seen.red;
        Ok((act, next?))
    }
}

/// Waits until requests are answered, events counted and services ready.
async fn recover(stage: &Stage, prober: &Prober, lifted: Instant, act: &mut Act) {
    let (mut flowing, mut counting) = (None, None);
    loop {
        flowing = flowing.or_else(|| prober.flow(lifted));
        if counting.is_none() {
            let sent = prober.acknowledged_after(lifted);
            let counted = counters(&stage.primary, &sent).await;
            counting = counted.is_ok_and(|counted| !counted.is_empty()).then(|| lifted.elapsed());
        }
        let not_ready = stage.not_ready().await;
        if flowing.is_some() && counting.is_some() && not_ready.is_none() {
            break;
        }
        if lifted.elapsed() > PATIENCE {
            act.failures.push(format!(
                "not well again after {PATIENCE:?}: 2xx after {flowing:?}, counted after {counting:?}, {not_ready:?}"
));
            break;
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    act.flowing = flowing.unwrap_or_else(|| lifted.elapsed());
    act.counting = counting.unwrap_or_else(|| lifted.elapsed());
}

/// Holds the answers against what clients may see of the fault.
fn judge(fault: Fault, probes: &Probes, act: &mut Act) {
    for (kind, probes, visible) in
        [("PUT", &probes.puts, fault.visible_to_senders()), ("GET", &probes.gets, fault.visible_to_readers())]
    {
        let refused = probes.iter().filter(|probe| probe.answer == Answer::Refused).count();
        act.refused += refused;
        if visible == Visible::CertainRefusals && refused == 0 {
            act.failures.push(format!("no {kind} was answered with 503"));
        }
        let wrong: Vec<&Probe> = probes.iter().filter(|probe| !explains(visible, probe)).collect();
        if let Some(first) = wrong.first() {
            act.failures.push(format!(
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
        Answer::Good => true,
        Answer::Refused => visible != Visible::Nothing && probe.took < PUBLISH_DEADLINE + LATE,
        Answer::Lost(_) => visible == Visible::Silence,
        Answer::Wrong(_) | Answer::None => false,
    }
}
