//! The OpenAPI document as an HTML page, for people. Everything shown is taken from the document.

use std::fmt::{self, Write};

use serde_json::Value;

/// The methods of a path, in the order in which they are shown.
const METHODS: [&str; 4] = ["get", "put", "post", "delete"];

/// One request that the document describes.
struct Operation<'a> {
    method: &'a str,
    path: &'a str,
    of: &'a Value,
}

/// The page of a document, with requests to an address as examples.
pub(super) fn render(document: &Value, address: &str) -> String {
    let mut page = String::new();
    write_page(&mut page, document, address).expect("a string takes whatever is written");
    page
}

fn write_page(page: &mut String, document: &Value, address: &str) -> fmt::Result {
    let info = &document["info"];
    let (title, operations) = (Text(&info["title"]), operations(document));
    write!(
        page,
        "<!DOCTYPE html>\n<html lang=\"en\">\n<head>\n<meta charset=\"utf-8\">\n\
         <meta name=\"viewport\" content=\"width=device-width, initial-scale=1\">\n\
         <title>{title}: API</title>\n\
         <link rel=\"stylesheet\" href=\"/docs/style.css\">\n</head>\n<body>\n\
         <a class=\"skip\" href=\"#requests\">To the requests</a>\n<header>\n\
         <h1>{title} <small>version {}</small></h1>\n<p>{}</p>\n\
         <p>For programs there is the same as an <a href=\"/openapi.json\">OpenAPI document</a>.</p>\n\
         </header>\n",
        Text(&info["version"]),
        Words(&info["description"]),
    )?;
    page.write_str("<nav aria-label=\"Requests\">\n<ul>\n")?;
    for operation in &operations {
        let summary = Text(&operation.of["summary"]);
        writeln!(page, "<li><a href=\"#{}\">{operation}</a> {summary}</li>", operation.anchor())?;
    }
    page.write_str("</ul>\n</nav>\n<main id=\"requests\">\n")?;
    let mut tag = None;
    for operation in &operations {
        if tag != operation.of["tags"][0].as_str() {
            tag = operation.of["tags"][0].as_str();
            writeln!(page, "<h2>{}</h2>", Text(&operation.of["tags"][0]))?;
        }
        write_operation(page, document, operation, address)?;
    }
    page.write_str("<h2>Objects</h2>\n")?;
    for (name, schema) in members(&document["components"]["schemas"]) {
        if schema["properties"].is_object() {
            write_schema(page, document, name, schema)?;
        }
    }
    let token = &document["components"]["securitySchemes"]["token"];
    write!(page, "<h2 id=\"token\">Tokens</h2>\n<p>{}</p>\n", Words(&token["description"]))?;
    page.write_str("</main>\n</body>\n</html>\n")
}

/// The requests, grouped by tag; those that serve the document itself come last.
fn operations(document: &Value) -> Vec<Operation<'_>> {
    let mut found = Vec::new();
    for (path, item) in members(&document["paths"]) {
        let of_path = METHODS.iter().filter_map(|method| Some((*method, item.get(*method)?)));
        found.extend(of_path.map(|(method, of)| Operation { method, path, of }));
    }
    found.sort_by_key(|operation| {
        let tag = operation.of["tags"][0].as_str().unwrap_or_default();
        (operation.of["security"][0].is_object() && operation.of["security"][1].is_null(), tag)
    });
    found
}

fn write_operation(page: &mut String, document: &Value, operation: &Operation, address: &str) -> fmt::Result {
    let (anchor, of) = (operation.anchor(), operation.of);
    write!(
        page,
        "<section aria-labelledby=\"{anchor}\">\n<h3 id=\"{anchor}\">{operation}</h3>\n\
         <p><strong>{}.</strong> {}</p>\n",
        Text(&of["summary"]),
        Words(&of["description"]),
    )?;
    let scopes = of["security"].as_array().into_iter().flatten().filter_map(|one| one["token"][0].as_str());
    for scope in scopes {
        let scope = Escaped(scope);
        writeln!(
            page,
            "<p>Needs a <a href=\"#token\">token</a> with the scope <code>{scope}</code>, if the service \
             uses tokens.</p>"
        )?;
    }
    write_command(page, document, operation, address)?;
    write_parameters(page, document, of)?;
    if let Some(content) = of["requestBody"]["content"].as_object() {
        let description = Words(&of["requestBody"]["description"]);
        write!(page, "<h4>Body</h4>\n<p>{description}</p>\n<div class=\"scroll\"><table>\n<thead><tr>")?;
        page.write_str(
            "<th scope=\"col\">Content-Type</th><th scope=\"col\">What it is</th></tr></thead>\n",
        )?;
        for (kind, media) in content {
            let schema = Schema { document, schema: &media["schema"] };
            let kind = Escaped(kind);
            writeln!(page, "<tr><th scope=\"row\"><code>{kind}</code></th><td>{schema}</td></tr>")?;
        }
        page.write_str("</table></div>\n")?;
    }
    page.write_str("<h4>Answers</h4>\n")?;
    for (status, response) in members(&of["responses"]) {
        write_response(page, document, status, response)?;
    }
    page.write_str("</section>\n")
}

/// A command line that sends the request.
fn write_command(page: &mut String, document: &Value, operation: &Operation, address: &str) -> fmt::Result {
    let mut path = operation.path.to_owned();
    for parameter in operation.of["parameters"].as_array().into_iter().flatten() {
        let schema = resolve(document, &parameter["schema"]);
        let example = schema["examples"][0].as_str().or_else(|| schema["enum"][0].as_str());
        if let (Some(name), Some(example)) = (parameter["name"].as_str(), example) {
            path = path.replace(&format!("{{{name}}}"), example);
        }
    }
    let mut command = "curl -i ".to_owned();
    let body = &operation.of["requestBody"]["content"]["application/json"]["example"];
    match operation.method {
        "get" => {}
        _ if !body.is_null() => write!(command, "--json '{body}' ")?,
        method => write!(command, "-X {} ", method.to_ascii_uppercase())?,
    }
    write!(command, "http://{address}{path}")?;
    writeln!(page, "<pre><code>{}</code></pre>", Escaped(&command))
}

fn write_parameters(page: &mut String, document: &Value, of: &Value) -> fmt::Result {
    let Some(parameters) = of["parameters"].as_array() else { return Ok(()) };
    page.write_str(
        "<h4>Parameters</h4>\n<div class=\"scroll\"><table>\n<thead><tr><th scope=\"col\">Name</th>\
         <th scope=\"col\">Where</th><th scope=\"col\">What it is</th></tr></thead>\n",
    )?;
    for parameter in parameters {
        let schema = Schema { document, schema: &parameter["schema"] };
        let optional = if parameter["required"] == true { "" } else { ", optional" };
        writeln!(
            page,
            "<tr><th scope=\"row\"><code>{}</code></th><td>{}{optional}</td><td>{} {schema}</td></tr>",
            Text(&parameter["name"]),
            Text(&parameter["in"]),
            Words(&parameter["description"]),
        )?;
    }
    page.write_str("</table></div>\n")
}

fn write_response(page: &mut String, document: &Value, status: &str, response: &Value) -> fmt::Result {
    write!(page, "<p><strong>{}</strong> {}", Escaped(status), Words(&response["description"]))?;
    for (name, header) in members(&response["headers"]) {
        write!(page, " Header <code>{}</code>: {}", Escaped(name), Words(&header["description"]))?;
    }
    page.write_str("</p>\n")?;
    for (kind, media) in members(&response["content"]) {
        let examples = members(&media["examples"]).map(|(name, example)| (name, &example["value"]));
        for (name, example) in examples.chain(media.get("example").map(|example| (kind, example))) {
            let schema = Schema { document, schema: &media["schema"] };
            let example = format!("{example:#}");
            writeln!(page, "<details><summary>Example of <code>{}</code></summary>", Escaped(name))?;
            writeln!(page, "<p><code>{}</code>: {schema}</p>", Escaped(kind))?;
            writeln!(page, "<pre><code>{}</code></pre></details>", Escaped(&example))?;
        }
    }
    Ok(())
}

/// The members of an object.
fn write_schema(page: &mut String, document: &Value, name: &str, schema: &Value) -> fmt::Result {
    let required: Vec<&str> =
        schema["required"].as_array().into_iter().flatten().filter_map(Value::as_str).collect();
    let escaped = Escaped(name);
    write!(page, "<h3 id=\"of-{escaped}\">{escaped}</h3>\n<p>{}</p>\n", Words(&schema["description"]))?;
    page.write_str(
        "<div class=\"scroll\"><table>\n<thead><tr><th scope=\"col\">Member</th>\
         <th scope=\"col\">What it is</th></tr></thead>\n",
    )?;
    for (name, member) in members(&schema["properties"]) {
        let optional = if required.contains(&name) { "" } else { " Optional." };
        let (name, schema) = (Escaped(name), Schema { document, schema: member });
        writeln!(page, "<tr><th scope=\"row\"><code>{name}</code></th><td>{schema}{optional}</td></tr>")?;
    }
    page.write_str("</table></div>\n")
}

impl Operation<'_> {
    fn anchor(&self) -> String {
        let path = self.path.replace(|letter: char| !letter.is_ascii_alphanumeric(), "-");
        format!("{}{}", self.method, path.trim_end_matches('-'))
    }
}

impl fmt::Display for Operation<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (class, method) = (self.method, self.method.to_ascii_uppercase());
        write!(f, "<span class=\"method {class}\">{method}</span> <code>{}</code>", Escaped(self.path))
    }
}

fn members(object: &Value) -> impl Iterator<Item = (&str, &Value)> {
    object.as_object().into_iter().flatten().map(|(name, value)| (name.as_str(), value))
}

/// A schema, or the one that it refers to.
fn resolve<'a>(document: &'a Value, schema: &'a Value) -> &'a Value {
    let refers_to = |schema: &'a Value| schema["$ref"].as_str();
    // An optional one is "null, or this".
    let choice = schema["oneOf"].as_array().into_iter().flatten().find(|choice| refers_to(choice).is_some());
    let name = refers_to(choice.unwrap_or(schema)).and_then(|path| path.rsplit('/').next());
    name.map_or(schema, |name| &document["components"]["schemas"][name])
}

/// The description of a schema, in one or more sentences.
struct Schema<'a> {
    document: &'a Value,
    schema: &'a Value,
}

impl fmt::Display for Schema<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let schema = resolve(self.document, self.schema);
        if let Some(name) = self.schema["$ref"].as_str().and_then(|path| path.rsplit('/').next())
            && schema["properties"].is_object()
        {
            let name = Escaped(name);
            return write!(f, "<a href=\"#of-{name}\">{name}</a>");
        }
        let description = self.schema.get("description").unwrap_or(&schema["description"]);
        write!(f, "{}", Words(description))?;
        if schema["items"].is_object() {
            write!(f, " Each is: {}.", Schema { document: self.document, schema: &schema["items"] })?;
        }
        for (word, from) in [("One of", &schema["enum"]), ("For example", &schema["examples"])] {
            let values: Vec<&Value> = from.as_array().into_iter().flatten().collect();
            for (number, value) in values.iter().enumerate() {
                let before = if number == 0 { format!(" {word}") } else { ",".into() };
                let value = value.as_str().map_or_else(|| value.to_string(), str::to_owned);
                write!(f, "{before} <code>{}</code>", Escaped(&value))?;
            }
            f.write_str(if values.is_empty() { "" } else { "." })?;
        }
        for (name, word) in [("minimum", "At least"), ("maximum", "At most"), ("default", "If missing:")] {
            if let Some(number) = schema.get(name) {
                write!(f, " {word} <code>{number}</code>.")?;
            }
        }
        Ok(())
    }
}

/// A text of the document, escaped.
struct Text<'a>(&'a Value);

impl fmt::Display for Text<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        Escaped(self.0.as_str().unwrap_or_default()).fmt(f)
    }
}

/// The same, with text between backticks as code.
struct Words<'a>(&'a Value);

impl fmt::Display for Words<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (number, part) in self.0.as_str().unwrap_or_default().split('`').enumerate() {
            let part = Escaped(part);
            if number % 2 == 0 { write!(f, "{part}") } else { write!(f, "<code>{part}</code>") }?;
        }
        Ok(())
    }
}

/// A text escaped for HTML, in contents and in attributes.
struct Escaped<'a>(&'a str);

impl fmt::Display for Escaped<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for letter in self.0.chars() {
            match letter {
                '&' => f.write_str("&amp;"),
                '<' => f.write_str("&lt;"),
                '>' => f.write_str("&gt;"),
                '"' => f.write_str("&quot;"),
                '\'' => f.write_str("&#39;"),
                _ => f.write_char(letter),
            }?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn a_text_stands_for_itself() {
        let text = json!("<b> & \"'`x`");
        assert_eq!(Words(&text).to_string(), "&lt;b&gt; &amp; &quot;&#39;<code>x</code>");
    }
}
