//! The compose file as an engine reads it.

use serde_json::Value;

const COMPOSE: &str = include_str!("../../../docker-compose.yml");

/// The compose file as an engine resolves it, with `value(name, default)` for each `${name:-default}`.
pub(super) fn compose(mut value: impl FnMut(&str, &str) -> String) -> Value {
    let mut compose = serde_saphyr::from_str(COMPOSE).unwrap();
    interpolate(&mut compose, &mut value);
    compose
}

/// With nothing set in the environment.
pub(crate) fn by_default() -> Value {
    compose(|_, default| default.to_owned())
}

fn interpolate(node: &mut Value, value: &mut impl FnMut(&str, &str) -> String) {
    match node {
        Value::String(text) => *text = interpolated(text, value),
        Value::Array(items) => items.iter_mut().for_each(|item| interpolate(item, value)),
        Value::Object(members) => members.values_mut().for_each(|member| interpolate(member, value)),
        _ => {}
    }
}

fn interpolated(text: &str, value: &mut impl FnMut(&str, &str) -> String) -> String {
    let mut result = String::new();
    let mut rest = text;
    while let Some((before, after)) = rest.split_once('$') {
        result.push_str(before);
        if let Some(after) = after.strip_prefix('$') {
            result.push('$');
            rest = after;
        } else {
            let braces = after.strip_prefix('{').and_then(|after| after.split_once('}'));
            let (variable, after) = braces.unwrap_or_else(|| panic!("neither $$ nor ${{..}} in {text:?}"));
            // A variable that has to be set stands for itself.
            let (name, default) = variable.split_once(":-").unwrap_or_else(|| {
                let (name, sentence) = variable.split_once(":?").expect("a default or a sentence");
                assert!(sentence.len() > 10, "{variable}");
                (name, name)
            });
            result.push_str(&value(name, default));
            rest = after;
        }
    }
    result + rest
}

pub(crate) fn text(value: &Value) -> &str {
    value.as_str().unwrap_or_else(|| panic!("{value} is not a text"))
}

/// The members of an object, if there is one.
pub(crate) fn members(value: &Value) -> impl Iterator<Item = (&str, &Value)> {
    value.as_object().into_iter().flatten().map(|(name, value)| (&**name, value))
}

/// The items of an array, if there is one.
pub(super) fn items(value: &Value) -> impl Iterator<Item = &Value> + Clone {
    value.as_array().into_iter().flatten()
}

pub(super) fn texts(value: &Value) -> Vec<&str> {
    items(value).map(text).collect()
}

/// The variables of a service whose names end like this.
pub(super) fn variables<'a>(service: &'a Value, end: &str) -> Vec<(&'a str, &'a str)> {
    let variables = members(&service["environment"]).map(|(name, value)| (name, text(value)));
    variables.filter(|(name, _)| name.ends_with(end)).collect()
}
