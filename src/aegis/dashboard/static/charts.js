// Small charts as SVG, drawn from numbers; nothing here knows where they come from.

const SVG = "http://www.w3.org/2000/svg";

function svg(name, attributes, ...children) {
  const element = document.createElementNS(SVG, name);
  for (const [key, value] of Object.entries(attributes)) element.setAttribute(key, value);
  element.append(...children);
  return element;
}

// A line through the numbers, scaled to their own range.
export class Sparkline {
  constructor() {
    this.line = svg("polyline", {points: ""});
    this.element = svg("svg", {viewBox: "0 0 100 30", preserveAspectRatio: "none", "aria-hidden": "true"}, this.line);
  }

  draw(numbers) {
    const low = Math.min(...numbers), high = Math.max(...numbers), range = high - low || 1;
    const step = 100 / Math.max(1, numbers.length - 1);
    const y = (number) => high === low ? 15 : 28 - 26 * (number - low) / range;
    this.line.setAttribute("points", numbers.map((number, at) => `${(at * step).toFixed(1)},${y(number).toFixed(1)}`).join(" "));
  }
}

// How full a window was over the last `seconds`, below a dashed ceiling. Points are [time, share], oldest first.
export class WindowPlot {
  constructor(seconds, points = []) {
    this.seconds = seconds;
    this.points = points;
    this.area = svg("polygon", {points: "", class: "plot"});
    this.element = svg("svg", {viewBox: "0 0 100 40", preserveAspectRatio: "none", "aria-hidden": "true"},
      this.area, svg("line", {x1: 0, x2: 100, y1: 6, y2: 6, class: "ceiling"}));
  }

  add(at, share) {
    if (this.points.at(-1)?.[1] !== share) this.points.push([at, share]);
    while (this.points.length > 2 && this.points[1][0] < at - this.seconds) this.points.shift();
  }

  draw(now) {
    if (!this.points.length) return;
    const x = (at) => Math.min(100, Math.max(0, 100 - 100 * (now - at) / this.seconds)).toFixed(2);
    const y = (share) => (39 - 33 * Math.min(share, 1.1)).toFixed(2);
    const steps = this.points.flatMap(([at, share], index) => {
      const until = this.points[index + 1]?.[0] ?? now;
      return [`${x(at)},${y(share)}`, `${x(until)},${y(share)}`];
    });
    this.area.setAttribute("points", [`${x(this.points[0][0])},39`, ...steps, `${x(now)},39`].join(" "));
  }
}
