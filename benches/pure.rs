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

/// What every listener does with a request before it is routed.
mod access {
    use super::{Bencher, ItemsCount};
    use catchall::grant::Grant;
    use catchall::http::{Guard, GuardConfig, HttpConfig, OpsConfig};
    use catchall::token::Token;
    use clap::{Args, FromArgMatches};
    use hyper::Request;

    /// Tokens in the file.
    const TOKENS: u8 = 50;

    fn parse<C: Args + FromArgMatches>(arguments: &[&str]) -> C {
        let command = C::augment_args(clap::Command::new("bench").no_binary_name(true));
        C::from_arg_matches(&command.get_matches_from(arguments)).expect("the arguments are valid")
    }

    /// A guard with tokens, and with limits that nobody reaches; and one of the tokens.
    fn guard() -> (Guard, Token) {
        let token = |number| Token::from_digits([number; 32]);
        let grants = (0..TOKENS).map(|number| Grant {
            name: format!("holder-{number}").parse().expect("a name"),
            scopes: "write".parse().expect("scopes"),
            digest: token(number).digest(),
            expiry: "2999-01-01".parse().expect("a time"),
        });
        let file = std::env::temp_dir().join(format!("catchall-bench-tokens-{}", std::process::id()));
        let lines: Vec<String> = grants.map(|grant| grant.to_string()).collect();
        std::fs::write(&file, lines.join("\n")).expect("the file can be written");
        let path = file.to_str().expect("a path in UTF-8");
        let config: GuardConfig = parse(&["--tokens", path]);
        let limit = "1000000000";
        let http: HttpConfig = parse(&[
            "--listen=127.0.0.1:0",
            &format!("--address-requests-per-sec={limit}"),
            &format!("--token-requests-per-sec={limit}"),
        ]);
        let ops: OpsConfig = parse(&["--ops-listen=127.0.0.1:0"]);
        let guard = config.load(Some(&http), &ops, None).expect("the file is valid");
        std::fs::remove_file(file).expect("it is there");
        (guard, token(7))
    }

    #[divan::bench]
    fn check(bencher: Bencher<'_, '_>) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().expect("a runtime");
        let _entered = runtime.enter();
        let (guard, token) = guard();
        let visitor = guard.connect([127, 0, 0, 1].into()).expect("the first connection");
        let request = Request::put("/events/nukosiqiguvo.nl/delivered")
            .header("authorization", format!("Bearer {}", token.expose()));
        let request = request.body(()).expect("a request");
        bencher.counter(ItemsCount::new(1_usize)).with_inputs(|| request.clone()).bench_local_refs(
            |request| {
                visitor.check(request).expect("the token is valid");
            },
        );
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
