//! Percentile curves as SVG: how slow is the slowest request in so many.
//!
//! The horizontal axis is logarithmic in 1/(1-percentile), so that the tail gets its room; the
//! vertical one is logarithmic in latency.

use crate::units::latency;
use hdrhistogram::Histogram;
use std::fmt::Write;

/// One curve.
pub struct Curve {
    /// Its name in the legend.
    pub name: String,
    /// Latencies in nanoseconds.
    pub histogram: Histogram<u64>,
}

const WIDTH: f64 = 960.0;
const HEIGHT: f64 = 540.0;
const LEFT: f64 = 90.0;
const RIGHT: f64 = 30.0;
const TOP: f64 = 60.0;
const BOTTOM: f64 = 70.0;
/// Told apart by people of every colour vision: M. Okabe and K. Ito, "Color Universal Design".
const COLOURS: [&str; 7] =
    ["#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#000000"];
/// Lines per halving of the distance to 100 %.
const TICKS: u32 = 20;

struct Axes {
    nines: f64,
    low: f64,
    high: f64,
}

impl Axes {
    fn of(curves: &[Curve]) -> Axes {
        let most = curves.iter().map(|curve| curve.histogram.len()).max().unwrap_or(1);
        let shortest = curves.iter().map(|curve| curve.histogram.min()).min().unwrap_or(1);
        let longest = curves.iter().map(|curve| curve.histogram.max()).max().unwrap_or(1);
        let low = (shortest.max(1) as f64).log10().floor();
        let high = (longest.max(1) as f64).log10().ceil().max(low + 1.0);
        Axes { nines: (most.max(10) as f64).log10().ceil(), low, high }
    }

    /// The place of a quantile; 1 lies at the right end.
    fn x(&self, quantile: f64) -> f64 {
        let nines = -(1.0 - quantile).max(1e-12).log10();
        LEFT + nines.min(self.nines) / self.nines * (WIDTH - LEFT - RIGHT)
    }

    fn y(&self, ns: f64) -> f64 {
        let share = (ns.max(1.0).log10() - self.low) / (self.high - self.low);
        HEIGHT - BOTTOM - share * (HEIGHT - TOP - BOTTOM)
    }
}

/// The drawing of `curves`.
pub fn svg(title: &str, curves: &[Curve]) -> String {
    let axes = Axes::of(curves);
    let mut text = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {WIDTH} {HEIGHT}\" \
         font-family=\"sans-serif\" font-size=\"13\">\n\
         <rect width=\"{WIDTH}\" height=\"{HEIGHT}\" fill=\"white\"/>\n\
         <text x=\"{LEFT}\" y=\"30\" font-size=\"18\">Latency by percentile: {}</text>\n",
        escape(title)
    );
    grid(&mut text, &axes);
    for (index, curve) in curves.iter().enumerate() {
        draw(&mut text, &axes, curve, index);
    }
    text.push_str("</svg>\n");
    text
}

fn grid(text: &mut String, axes: &Axes) {
    let (right, bottom) = (WIDTH - RIGHT, HEIGHT - BOTTOM);
    for nines in 0..=axes.nines as i32 {
        let quantile = 1.0 - 10f64.powi(-nines);
        let x = axes.x(quantile);
        let decimals = (nines - 2).max(0) as usize;
        let label = format!("{:.decimals$} %", quantile * 100.0);
        let _ = writeln!(
            text,
            "<path d=\"M{x:.1} {TOP}V{bottom}\" stroke=\"#ddd\"/>\
             <text x=\"{x:.1}\" y=\"{:.1}\" text-anchor=\"middle\">{label}</text>",
            bottom + 20.0
        );
    }
    for power in axes.low as i32..=axes.high as i32 {
        let ns = 10f64.powi(power);
        let y = axes.y(ns);
        let _ = writeln!(
            text,
            "<path d=\"M{LEFT} {y:.1}H{right}\" stroke=\"#ddd\"/>\
             <text x=\"{:.1}\" y=\"{:.1}\" text-anchor=\"end\">{}</text>",
            LEFT - 8.0,
            y + 4.0,
            latency(ns)
        );
    }
    let _ = writeln!(
        text,
        "<path d=\"M{LEFT} {TOP}V{bottom}H{right}\" fill=\"none\" stroke=\"black\"/>\n\
         <text x=\"{:.1}\" y=\"{:.1}\" text-anchor=\"middle\">percentile of requests</text>\n\
         <text transform=\"translate(18 {:.1}) rotate(-90)\" text-anchor=\"middle\">latency \
         (logarithmic)</text>",
        (LEFT + right) / 2.0,
        HEIGHT - 22.0,
        (TOP + bottom) / 2.0
    );
}

fn draw(text: &mut String, axes: &Axes, curve: &Curve, index: usize) {
    let colour = COLOURS[index % COLOURS.len()];
    let mut path = String::new();
    for step in curve.histogram.iter_quantiles(TICKS) {
        let (x, y) = (axes.x(step.quantile_iterated_to()), axes.y(step.value_iterated_to() as f64));
        let _ = write!(path, "{}{x:.1} {y:.1}", if path.is_empty() { "M" } else { "L" });
    }
    let (x, y) = (LEFT + 16.0, TOP + 18.0 + 20.0 * index as f64);
    let _ = writeln!(
        text,
        "<path d=\"{path}\" fill=\"none\" stroke=\"{colour}\" stroke-width=\"2\"/>\n\
         <path d=\"M{x} {y}h24\" stroke=\"{colour}\" stroke-width=\"3\"/>\
         <text x=\"{:.1}\" y=\"{:.1}\">{} ({} requests)</text>",
        x + 32.0,
        y + 4.0,
        escape(&curve.name),
        curve.histogram.len()
    );
}

fn escape(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;").replace('"', "&quot;")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn curve(name: &str, values: &[u64]) -> Curve {
        let mut histogram = Histogram::new_with_bounds(1, 600_000_000_000, 3).unwrap();
        values.iter().for_each(|value| histogram.record(*value).unwrap());
        Curve { name: name.into(), histogram }
    }

    #[test]
    fn a_drawing_has_titles_units_and_every_curve() {
        let drawing = svg("a <b> & c", &[curve("read", &[50_000; 1000]), curve("write", &[900])]);
        for part in ["a &lt;b&gt; &amp; c", "99.9 %", "100 us", "read (1000", "write (1 ", "</svg>"]
        {
            assert!(drawing.contains(part), "{part} is missing in {drawing}");
        }
        assert_eq!(drawing.matches("stroke-width=\"2\"").count(), 2);
        assert!(!drawing.contains("NaN") && !drawing.contains("inf"));
    }

    #[test]
    fn the_tail_lies_right_and_slow_lies_high() {
        let axes = Axes::of(&[curve("x", &[1_000, 1_000_000].repeat(500))]);
        assert!(axes.x(0.9) < axes.x(0.99) && axes.x(1.0) <= WIDTH - RIGHT);
        assert!(axes.y(1_000_000.0) < axes.y(1_000.0));
        assert!(axes.y(1_000_000.0) >= TOP && axes.y(1_000.0) <= HEIGHT - BOTTOM);
    }
}
