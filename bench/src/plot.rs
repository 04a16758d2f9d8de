//! Figures to look at: lines in an SVG file.

use plotters::prelude::*;

use crate::error::BenchError;

const SIZE: (u32, u32) = (960, 540);
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

/// One line.
pub(crate) struct Series {
    pub(crate) name: String,
    /// A quantile (0 to 1) or bytes, and the value there.
    pub(crate) points: Vec<(f64, f64)>,
}

/// A plot.
pub(crate) struct Plot<'a> {
    pub(crate) title: &'a str,
    pub(crate) below: Below,
    /// What the values are, with their unit.
    pub(crate) values: &'a str,
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

impl Plot<'_> {
    /// As an SVG file. Values on a logarithmic scale.
    pub(crate) fn svg(&self) -> Result<String, BenchError> {
        let mut text = String::new();
        self.draw(SVGBackend::with_string(&mut text, SIZE).into_drawing_area())
            .map_err(|error| BenchError::Histogram(format!("no plot: {error}")))?;
        Ok(text)
    }

    fn draw<DB: DrawingBackend>(
        &self,
        area: DrawingArea<DB, plotters::coord::Shift>,
    ) -> Result<(), DrawingAreaErrorKind<DB::ErrorType>> {
        let places: Vec<Vec<(f64, f64)>> = self.series.iter().map(|series| self.placed(series)).collect();
        let range = |of: fn(&(f64, f64)) -> f64| {
            let all = || places.iter().flatten().map(of);
            (all().fold(f64::INFINITY, f64::min), all().fold(f64::NEG_INFINITY, f64::max))
        };
        let ((left, right), (low, high)) = (range(|point| point.0), range(|point| point.1));
        area.fill(&WHITE)?;
        if !(left.is_finite() && low.is_finite()) {
            return area.present();
        }
        let (right, high) = (right.max(left + 1.0), (high * 1.2).max(low * 2.0));
        let mut chart = ChartBuilder::on(&area)
            .caption(self.title, ("sans-serif", 20))
            .margin(12)
            .x_label_area_size(44)
            .y_label_area_size(64)
            .build_cartesian_2d(left..right, ((low * 0.8)..high).log_scale())?;
        chart
            .configure_mesh()
            .x_desc(if self.below == Below::Bytes { "bytes of an operation" } else { "percentile" })
            .y_desc(self.values)
            .x_labels((right - left).round() as usize + 1)
            .x_label_formatter(&|place| self.below.label(*place))
            .y_label_formatter(&|value| format!("{value:.*}", usize::from(*value < 10.0)))
            .light_line_style(WHITE)
            .draw()?;
        for (at, (series, places)) in self.series.iter().zip(&places).enumerate() {
            let colour = COLOURS[at % COLOURS.len()];
            let style = colour.stroke_width(2);
            chart
                .draw_series(LineSeries::new(places.iter().copied(), style))?
                .label(&series.name)
                .legend(move |(x, y)| PathElement::new(vec![(x, y), (x + 18, y)], style));
            if self.below == Below::Bytes {
                chart.draw_series(places.iter().map(|point| Circle::new(*point, 3, colour.filled())))?;
            }
        }
        chart
            .configure_series_labels()
            .position(SeriesLabelPosition::UpperLeft)
            .background_style(WHITE.mix(0.8))
            .border_style(RGBColor(200, 200, 200))
            .label_font(("sans-serif", 14))
            .draw()?;
        area.present()
    }

    fn placed(&self, series: &Series) -> Vec<(f64, f64)> {
        // What is not above zero has no place on a logarithmic scale.
        let points = series.points.iter().filter(|(_, value)| *value > 0.0);
        points.map(|(x, value)| (self.below.place(*x), *value)).collect()
    }
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
        let plot =
            Plot { title: "times", below: Below::Bytes, values: "µs", series: vec![series("sealed"), series("raw")] };
        let svg = plot.svg().expect("drawn");
        assert!(svg.starts_with("<svg"), "{svg}");
        assert!(["times", "sealed", "raw", "4 KiB"].iter().all(|text| svg.contains(text)), "{svg}");
        let none = Plot { series: Vec::new(), ..plot };
        assert!(none.svg().expect("drawn").starts_with("<svg"));
    }
}
