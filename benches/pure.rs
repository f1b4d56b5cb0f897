//! The parts without I/O, in events per second and with their allocations: `cargo bench --profile dist
//! --bench pure`.

use catchall::batch::Batch;
use catchall::bulk::{self, MediaType};
use catchall::counters::Counters;
use catchall::domain_name::DomainName;
use catchall::event::Event;
use catchall_load::workload::{Draw, Names, Shape, Workload};
use divan::counter::ItemsCount;
use divan::{AllocProfiler, Bencher, black_box};

#[global_allocator]
static ALLOCATIONS: AllocProfiler = AllocProfiler::system();

/// Events in a body: as many as in a bulk request of `catchall-load`.
const EVENTS: u32 = 1_000;

/// The seed of the events.
const SEED: u64 = 1;

/// A few domains many times, and many domains once.
const SHAPES: [Shape; 2] = [Shape::Waves, Shape::Uniform];

fn main() {
    divan::main();
}

/// The events of the first messages of a workload.
fn draws(shape: Shape) -> impl Iterator<Item = Vec<Draw>> {
    let mut workload = Workload::new(shape, SEED, 10_000_000);
    std::iter::repeat_with(move || (0..EVENTS).map(|_| workload.draw()).collect())
}

/// Events as a client writes them in JSON.
fn written(shape: Shape, draws: &[Draw]) -> Vec<String> {
    let names = Names::new(shape, SEED);
    let written = draws.iter().map(|draw| {
        let mut name = Vec::new();
        names.spell(draw.domain, &mut name);
        let name = String::from_utf8(name).expect("names are ASCII");
        format!(r#"{{"domain":"{name}","event":"{}"}}"#, draw.kind.as_str())
    });
    written.collect()
}

/// A full bulk request.
fn request(shape: Shape) -> Vec<String> {
    draws(shape).next().map(|draws| written(shape, &draws)).unwrap_or_default()
}

/// Events as the system reads them.
fn read(written: &[String]) -> Vec<Event> {
    let events = written.iter().map(|event| serde_json::from_str(event));
    events.collect::<Result<_, _>>().expect("they are well-formed")
}

/// The batches of the first messages.
fn batches(shape: Shape) -> impl Iterator<Item = Batch> {
    draws(shape).map(move |draws| {
        let mut batch = Batch::default();
        for event in read(&written(shape, &draws)) {
            batch.record(event);
        }
        batch
    })
}

/// The batch of the first message.
fn batch(shape: Shape) -> Batch {
    batches(shape).next().unwrap_or_default()
}

mod domain_name {
    use super::{Bencher, DomainName, ItemsCount, black_box};

    #[divan::bench(args = ["nukosiqiguvo.nl", "NuKoSiQiGuVo.nl", "müller.example", "例え.テスト"])]
    fn parse(bencher: Bencher<'_, '_>, spelling: &str) {
        bencher.counter(ItemsCount::new(1_usize)).bench(|| DomainName::parse(black_box(spelling)));
    }
}

/// What ingest does with the body of a bulk request.
mod read_bulk {
    use super::{Batch, Bencher, EVENTS, ItemsCount, MediaType, SHAPES, Shape, black_box, bulk, request};

    #[divan::bench(args = SHAPES)]
    fn ndjson(bencher: Bencher<'_, '_>, shape: Shape) {
        measure(bencher, &request(shape).join("\n"), MediaType::NdJson);
    }

    #[divan::bench(args = SHAPES)]
    fn array(bencher: Bencher<'_, '_>, shape: Shape) {
        measure(bencher, &format!("[{}]", request(shape).join(",")), MediaType::JsonArray);
    }

    fn measure(bencher: Bencher<'_, '_>, body: &str, media_type: MediaType) {
        bencher.counter(ItemsCount::new(EVENTS)).bench(|| {
            let mut batch = Batch::default();
            let events = bulk::events(black_box(body.as_bytes()), media_type).expect("it is well-formed");
            events.for_each(|event| batch.record(event.expect("so are its events")));
            batch
        });
    }
}

mod fold {
    use super::{Batch, Bencher, Counters, EVENTS, ItemsCount, SHAPES, Shape, batch, batches, read, request};
    use catchall::tally::Tally;

    /// Messages per transaction.
    const MESSAGES: usize = 100;

    /// Adds events to the open batch.
    #[divan::bench(args = SHAPES)]
    fn record(bencher: Bencher<'_, '_>, shape: Shape) {
        let events = read(&request(shape));
        bencher.counter(ItemsCount::new(EVENTS)).with_inputs(|| events.clone()).bench_values(|events| {
            let mut batch = Batch::default();
            for event in events {
                batch.record(event);
            }
            batch
        });
    }

    /// Merges a bulk request into an open batch.
    #[divan::bench(args = SHAPES)]
    fn merge(bencher: Bencher<'_, '_>, shape: Shape) {
        let batch = batch(shape);
        let inputs = bencher.counter(ItemsCount::new(EVENTS)).with_inputs(|| (batch.clone(), batch.clone()));
        inputs.bench_values(|(mut open, request)| {
            open.merge(request);
            open
        });
    }

    /// What the worker does with the messages of a transaction.
    #[divan::bench(args = SHAPES)]
    fn delivery_batch(bencher: Bencher<'_, '_>, shape: Shape) {
        let messages: Vec<Batch> = batches(shape).take(MESSAGES).collect();
        bencher.counter(ItemsCount::new(MESSAGES * EVENTS as usize)).bench(|| {
            let sums = messages.iter().flat_map(|batch| batch.plain.iter());
            sums.map(|(domain, counters)| (domain, Counters::clone(counters))).collect::<Tally<_>>().len()
        });
    }
}

mod message {
    use super::{Batch, Bencher, EVENTS, ItemsCount, SHAPES, Shape, batch, black_box};

    #[divan::bench(args = SHAPES)]
    fn encode(bencher: Bencher<'_, '_>, shape: Shape) {
        let batch = batch(shape);
        bencher.counter(ItemsCount::new(EVENTS)).bench(|| black_box(&batch).to_json());
    }

    #[divan::bench(args = SHAPES)]
    fn decode(bencher: Bencher<'_, '_>, shape: Shape) {
        let bodies = batch(shape).to_json();
        bencher.counter(ItemsCount::new(EVENTS)).bench(|| {
            for body in &bodies {
                let _ = black_box(Batch::from_json(black_box(body)));
            }
        });
    }
}
