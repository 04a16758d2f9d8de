//! Figures to look at: lines in an SVG file.

use plotters::coord::Shift;
use plotters::coord::ranged1d::ValueFormatter;
use plotters::coord::types::RangedCoordf64;
use plotters::prelude::*;

use crate::error::BenchError;

const WIDTH: u32 = 960;
/// Of a drawing with one plot, and of each of several.
const HEIGHT: [u32; 2] = [540, 400];
/// Beside a plot, what its lines are called: a stroke, and at most so many letters.
const STROKE: u32 = 34;
const MOST_LETTERS: usize = 40;
const LETTER: u32 = 8;
/// Along an axis.
const MOST_MARKS: usize = 12;
/// Colours that people who see fewer of them tell apart (Okabe and Ito).
const COLOURS: [RGBColor; 8] = [
    RGBColor(0, 114, 178),
    RGBColor(213, 94, 0),
    RGBColor(0, 158, 115),
    RGBColor(204, 121, 167),
    RGBColor(86, 180, 233),
    RGBColor(230, 159, 0),
    RGBColor(0, 0, 0),
    RGBColor(128, 128, 128),
];

/// What stands below a plot.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Below {
    /// Percentiles, the further right the rarer: 0 %, 90 %, 99 %, 99.9 %, …
    Percentiles,
    /// Bytes of an operation, each mark twice the one before.
    Bytes,
}

/// How the values are laid out.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Scale {
    /// Equal distances are equal ratios. What is not above zero is left out.
    Logarithmic,
    /// Equal distances are equal differences.
    Linear,
}

/// One line.
#[derive(Clone)]
pub(crate) struct Series {
    pub(crate) name: String,
    /// A quantile (0 to 1) or bytes, and the value there.
    pub(crate) points: Vec<(f64, f64)>,
}

/// A plot.
pub(crate) struct Plot {
    pub(crate) title: String,
    pub(crate) below: Below,
    /// What the values are, with their unit.
    pub(crate) values: String,
    pub(crate) scale: Scale,
    pub(crate) series: Vec<Series>,
}

impl Below {
    fn place(self, x: f64) -> f64 {
        match self {
            // The last of all would be infinitely far.
            Self::Percentiles => -(1.0 - x).max(1e-6).log10(),
            Self::Bytes => x.max(1.0).log2(),
        }
    }

    fn label(self, place: f64) -> String {
        match self {
            Self::Percentiles => {
                let nines = (place.round().max(0.0)) as usize;
                format!("{:.*} %", nines.saturating_sub(2), 100.0 - 100.0 / 10_f64.powi(nines as i32))
            }
            Self::Bytes => match place.round().max(0.0) as u32 {
                bits @ 0..10 => format!("{} B", 1_u64 << bits),
                bits @ 10..20 => format!("{} KiB", 1_u64 << (bits - 10)),
                bits => format!("{} MiB", 1_u64 << (bits.min(60) - 20)),
            },
        }
    }
}

/// Plots one below the other, as an SVG file.
pub(crate) fn svg(plots: &[Plot]) -> Result<String, BenchError> {
    let mut text = String::new();
    let height = HEIGHT[usize::from(plots.len() > 1)] * plots.len().max(1) as u32;
    let draw = |area: DrawingArea<SVGBackend<'_>, Shift>| {
        area.fill(&WHITE)?;
        for (plot, area) in plots.iter().zip(area.split_evenly((plots.len().max(1), 1))) {
            plot.draw(&area)?;
        }
        area.present()
    };
    draw(SVGBackend::with_string(&mut text, (WIDTH, height)).into_drawing_area())
        .map_err(|error| BenchError::Histogram(format!("no plot: {error}")))?;
    // The library leaves the last line open.
    if !text.ends_with('\n') {
        text.push('\n');
    }
    Ok(text)
}

type Outcome<DB> = Result<(), DrawingAreaErrorKind<<DB as DrawingBackend>::ErrorType>>;

impl Plot {
    fn draw<DB: DrawingBackend>(&self, area: &DrawingArea<DB, Shift>) -> Outcome<DB> {
        let places: Vec<Vec<(f64, f64)>> = self.series.iter().map(|series| self.placed(series)).collect();
        let range = |of: fn(&(f64, f64)) -> f64| {
            let all = || places.iter().flatten().map(of);
            (all().fold(f64::INFINITY, f64::min), all().fold(f64::NEG_INFINITY, f64::max))
        };
        let ((left, right), (low, high)) = (range(|point| point.0), range(|point| point.1));
        if !(left.is_finite() && low.is_finite()) {
            return Ok(());
        }
        let right = right.max(left + 1.0);
        let (plot, names) = area.split_horizontally(WIDTH - self.room_for_names());
        self.draw_names(&names)?;
        let mut chart = ChartBuilder::on(&plot);
        chart.caption(&self.title, ("sans-serif", 22)).margin(12).x_label_area_size(52).y_label_area_size(80);
        match self.scale {
            Scale::Logarithmic => {
                let (low, high) = (low * 0.8, (high * 1.2).max(low * 2.0));
                let values = (low..high).log_scale().with_key_points(marks(low, high));
                self.draw_lines(chart.build_cartesian_2d(left..right, values)?, &places)
            }
            Scale::Linear => {
                let (low, high) = (low.min(0.0), high.max(0.0));
                let room = ((high - low) * 0.08).max(1e-9);
                let values = if low < 0.0 { low - room } else { 0.0 }..high + room;
                self.draw_lines(chart.build_cartesian_2d(left..right, values)?, &places)
            }
        }
    }

    fn draw_lines<DB: DrawingBackend, Y: Ranged<ValueType = f64> + ValueFormatter<f64>>(
        &self,
        mut chart: ChartContext<'_, DB, Cartesian2d<RangedCoordf64, Y>>,
        places: &[Vec<(f64, f64)>],
    ) -> Outcome<DB> {
        let across = chart.x_range();
        chart
            .configure_mesh()
            .x_desc(if self.below == Below::Bytes { "bytes of an operation" } else { "percentile" })
            .y_desc(&self.values)
            .axis_desc_style(("sans-serif", 18))
            .label_style(("sans-serif", 16))
            .x_labels(((across.end - across.start).round() as usize + 1).min(MOST_MARKS))
            .x_label_formatter(&|place| self.below.label(*place))
            .y_label_formatter(&|value| number(*value))
            .light_line_style(WHITE)
            .draw()?;
        for (at, places) in places.iter().enumerate() {
            let colour = COLOURS[at % COLOURS.len()];
            if is_dashed(at) {
                let (dash, gap) = (8, 4);
                chart.draw_series(DashedLineSeries::new(places.iter().copied(), dash, gap, colour.stroke_width(2)))?;
            } else {
                chart.draw_series(LineSeries::new(places.iter().copied(), colour.stroke_width(2)))?;
            }
            if self.below == Below::Bytes {
                chart.draw_series(places.iter().map(|point| Circle::new(*point, 3, colour.filled())))?;
            }
        }
        Ok(())
    }

    fn room_for_names(&self) -> u32 {
        let letters = self.series.iter().map(|series| series.name.chars().count()).max().unwrap_or(0);
        STROKE + letters.min(MOST_LETTERS) as u32 * LETTER + LETTER
    }

    /// Beside the plot, where no line is.
    fn draw_names<DB: DrawingBackend>(&self, area: &DrawingArea<DB, Shift>) -> Outcome<DB> {
        for (at, series) in self.series.iter().enumerate() {
            let (colour, y) = (COLOURS[at % COLOURS.len()], 52 + at as i32 * 20);
            let strokes: &[(i32, i32)] = if is_dashed(at) { &[(4, 12), (18, 26)] } else { &[(4, 26)] };
            for (from, to) in strokes {
                area.draw(&PathElement::new(vec![(*from, y), (*to, y)], colour.stroke_width(3)))?;
            }
            let name: String = series.name.chars().take(MOST_LETTERS).collect();
            area.draw(&Text::new(name, (STROKE as i32 - 2, y - 7), ("sans-serif", 16)))?;
        }
        Ok(())
    }

    fn placed(&self, series: &Series) -> Vec<(f64, f64)> {
        // What is not above zero has no place on a logarithmic scale.
        let placed = |value: f64| value > 0.0 || self.scale == Scale::Linear;
        let points = series.points.iter().filter(|(_, value)| placed(*value));
        points.map(|(x, value)| (self.below.place(*x), *value)).collect()
    }
}

/// Whether this line has the colour of one before it.
fn is_dashed(line: usize) -> bool {
    line / COLOURS.len() % 2 == 1
}

/// Where a logarithmic axis has its marks: as many as there is room for, at round numbers.
fn marks(low: f64, high: f64) -> Vec<f64> {
    let steps: [&[f64]; 3] = [&[1.0, 1.5, 2.0, 3.0, 4.0, 5.0, 6.0, 8.0], &[1.0, 2.0, 5.0], &[1.0]];
    let powers = || (low.log10().floor() as i32..=high.log10().ceil() as i32).map(|power| 10_f64.powi(power));
    let marks = |steps: &[f64]| -> Vec<f64> {
        let all = powers().flat_map(|power| steps.iter().map(move |step| step * power));
        all.filter(|mark| (low..=high).contains(mark)).collect()
    };
    let finest = steps.into_iter().map(marks).find(|marks| marks.len() <= MOST_MARKS);
    finest.unwrap_or_else(|| marks(&[1.0]))
}

/// With as many decimals as it needs to be told from its neighbours.
fn number(value: f64) -> String {
    let size = value.abs();
    let decimals = if size >= 10.0 || size == 0.0 { 0 } else { (1.0 - size.log10().floor()).clamp(1.0, 6.0) as usize };
    let text = format!("{value:.decimals$}");
    if text.contains('.') { text.trim_end_matches('0').trim_end_matches('.').to_owned() } else { text }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn marks_are_named_as_people_name_them() {
        let percentiles = [0.0, 1.0, 2.0, 3.0, 4.0].map(|place| Below::Percentiles.label(place));
        assert_eq!(percentiles, ["0 %", "90 %", "99 %", "99.9 %", "99.99 %"]);
        let bytes = [64.0, 512.0, 4096.0, 1_048_576.0].map(|bytes| Below::Bytes.label(Below::Bytes.place(bytes)));
        assert_eq!(bytes, ["64 B", "512 B", "4 KiB", "1 MiB"]);
        assert!((Below::Percentiles.place(0.999) - 3.0).abs() < 1e-9);
    }

    #[test]
    fn a_plot_holds_its_lines_and_their_names() {
        let series =
            |name: &str| Series { name: name.to_owned(), points: vec![(64.0, 1.5), (4096.0, 2.5), (65536.0, 0.0)] };
        let plot = |scale, series| Plot {
            title: "times".to_owned(),
            below: Below::Bytes,
            values: "µs".to_owned(),
            scale,
            series,
        };
        let both = [Scale::Logarithmic, Scale::Linear].map(|scale| plot(scale, vec![series("sealed"), series("raw")]));
        let svg = svg(&both).expect("drawn");
        assert!(svg.starts_with("<svg"), "{svg}");
        assert!(["times", "sealed", "raw", "4 KiB"].iter().all(|text| svg.contains(text)), "{svg}");
        // The last point is zero: three of one line are on the linear scale alone.
        assert_eq!(svg.matches("<circle").count(), 2 * 2 + 2 * 3, "{svg}");
        assert!(super::svg(&[plot(Scale::Logarithmic, Vec::new())]).expect("drawn").starts_with("<svg"));
        assert!(super::svg(&[]).expect("drawn").starts_with("<svg"));
    }

    #[test]
    fn a_logarithmic_axis_has_marks_wherever_it_begins() {
        assert_eq!(marks(1.7, 50.0), [2.0, 3.0, 4.0, 5.0, 6.0, 8.0, 10.0, 15.0, 20.0, 30.0, 40.0, 50.0]);
        assert_eq!(marks(4.0, 600.0), [5.0, 10.0, 20.0, 50.0, 100.0, 200.0, 500.0]);
        assert_eq!(marks(0.9, 1e9).len(), 10);
        assert_eq!(marks(11.0, 14.0), [0.0; 0]);
    }

    #[test]
    fn more_lines_than_colours_are_dashed() {
        let series =
            |at: usize| Series { name: format!("line {at}"), points: vec![(64.0, 1.0), (128.0, at as f64 + 2.0)] };
        let of = |lines: usize| Plot {
            title: "many".to_owned(),
            below: Below::Bytes,
            values: "µs".to_owned(),
            scale: Scale::Linear,
            series: (0..lines).map(series).collect(),
        };
        // A stroke beside the plot for each of the eight, two for each of the rest.
        let strokes = |svg: String| svg.matches(r#"stroke-width="3""#).count();
        assert_eq!([8, 11].map(|lines| strokes(svg(&[of(lines)]).expect("drawn"))), [8, 14]);
    }

    #[test]
    fn numbers_have_the_decimals_they_need() {
        let all = [0.0, 0.005, 0.25, 1.0, 2.5, 40.0, 12_345.0, -0.5].map(number);
        assert_eq!(all, ["0", "0.005", "0.25", "1", "2.5", "40", "12345", "-0.5"]);
    }
}
