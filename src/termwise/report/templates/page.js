(() => {
  "use strict";
  const root = document.querySelector(".tw");
  const style = (name) => {
    const value = getComputedStyle(root).getPropertyValue(name).trim();
    return /^\d/.test(value) ? `rgb(${value})` : value;
  };
  const read = (box, what) => JSON.parse(box.querySelector(`:scope > script[data-${what}]`).textContent);
  const make = (tag, text) => Object.assign(document.createElement(tag), { textContent: text });

  const number = (value) => {
    if (value === null || value === undefined || Number.isNaN(value)) return "–";
    if (typeof value !== "number") return String(value);
    const size = Math.abs(value), short = Number(value.toPrecision(4));
    const text = size && (size < 1e-4 || size >= 1e6) ? short.toExponential().replace("e+", "e") : String(short);
    return text.replace(/^-/, "\u2212");
  };
  // Tips are made of nodes and text, never of markup.
  const tip = (head, rows) => {
    const box = document.createElement("div");
    box.append(make("b", head));
    for (const [name, value] of rows) {
      const row = document.createElement("div");
      row.className = "tw-tip";
      row.append(make("span", name), make("b", number(value)));
      box.append(row);
    }
    return box;
  };
  const last = (value) => (Array.isArray(value) ? value[value.length - 1] : value);
  const named = {
    "@number": number,
    "@font": getComputedStyle(root).fontFamily,
    "@step": (p) => tip(p.name, [["adds", p.value[3]], ["sum so far", p.value[1]]]),
    "@axis": (ps) => {
      const shown = ps.filter((p) => p.seriesType !== "custom");
      const head = Array.isArray(ps[0].value) ? ps[0].value[0] : ps[0].name;
      return tip(number(head), shown.map((p) => [p.seriesName, last(p.value)]));
    },
    "@cell": (p) => tip(p.seriesName, [[p.name, last(p.value)]]),
    "@point": (p) => tip(p.name, [["across", p.value[0]], ["up", p.value[1]]]),
    "@waterfall": (params, api) => {
      if (!Number.isFinite(api.value(0)) || !Number.isFinite(api.value(1))) return undefined; // no number, no bar
      const from = api.coord([api.value(0), api.value(2)]), to = api.coord([api.value(1), api.value(2)]);
      const high = Math.min(api.size([0, 1])[1] * 0.66, 20), left = Math.min(from[0], to[0]);
      const shape = { x: left, y: from[1] - high / 2, width: Math.max(Math.abs(to[0] - from[0]), 1.5), height: high, r: 2 };
      // beside its bar where there is room, else within it
      const room = params.coordSys.x + params.coordSys.width - (left + shape.width) > 64, before = left - params.coordSys.x > 64;
      const text = { text: number(api.value(3)), fill: style(room || before ? "--soft" : "--paper"), fontSize: 12 };
      const lie = { position: room ? "right" : before ? "left" : "insideRight", distance: 6 };
      return { type: "rect", shape, style: { fill: api.visual("color") }, textContent: { style: text }, textConfig: lie };
    },
    "@band": (params, api) => {
      if (params.dataIndexInside) return undefined;
      const places = [...Array(params.dataInsideLength).keys()].filter((i) => !Number.isNaN(api.value(1, i)));
      const at = (i, side) => api.coord([api.value(0, i), api.value(side, i)]);
      const points = [...places.map((i) => at(i, 1)), ...places.reverse().map((i) => at(i, 2))];
      return { type: "polygon", shape: { points }, style: { fill: api.visual("color"), opacity: 0.2 }, silent: true };
    },
  };
  const filled = (option) => {
    if (typeof option === "string") return option.startsWith("--") ? style(option) : named[option] ?? option;
    if (Array.isArray(option)) return option.map(filled);
    if (option === null || typeof option !== "object") return option;
    return Object.fromEntries(Object.entries(option).map(([key, value]) => [key, filled(value)]));
  };

  // -- charts: drawn when they can be seen, again when light turns dark ----------------------------------------------
  const charts = new Map();
  const draw = (box, options) => {
    const chart = charts.get(box) ?? echarts.init(box, null, { renderer: "svg" });
    charts.set(box, chart);
    const drawn = filled({ ...options, tooltip: { ...options.tooltip, confine: true, backgroundColor: "--paper", borderColor: "--faint", textStyle: { color: "--ink", fontSize: 13 } } });
    const names = drawn.yAxis?.axisLabel;
    if (names?.width) {
      const most = Math.floor(Math.min(names.width, 0.4 * box.clientWidth) / 6.6); // letters; the bars need room, too
      const middle = (name) => (name.length > most ? `${name.slice(0, Math.ceil(most / 2) - 1)}…${name.slice(name.length - Math.floor(most / 2))}` : name);
      Object.assign(names, { formatter: middle, width: undefined, overflow: undefined });
    }
    chart.setOption(drawn, true);
    box.options = options;
    return chart;
  };
  const show = (inside) => {
    for (const box of inside.querySelectorAll(".tw-chart")) {
      if (!charts.has(box) && box.offsetParent !== null) {
        const chart = draw(box, read(box.parentElement, "options"));
        link(box.parentElement, chart);
      }
      charts.get(box)?.resize();
    }
  };
  const again = () => charts.forEach((_, box) => draw(box, box.options));

  // A row of the table and its marks light up together.
  const link = (figure, chart) => {
    const rows = [...figure.querySelectorAll("tr[data-marks]")].map((row) => ({ row, marks: JSON.parse(row.dataset.marks) }));
    const act = (type, [seriesIndex, dataIndex]) => chart.dispatchAction({ type, seriesIndex, dataIndex });
    for (const { row, marks } of rows) {
      row.addEventListener("mouseenter", () => { marks.forEach((mark) => act("highlight", mark)); if (marks.length === 1) act("showTip", marks[0]); });
      row.addEventListener("mouseleave", () => { marks.forEach((mark) => act("downplay", mark)); chart.dispatchAction({ type: "hideTip" }); });
    }
    const light = (on) => (p) => {
      const found = rows.find(({ marks }) => marks.some(([series, index]) => series === p.seriesIndex && index === p.dataIndex));
      found?.row.classList.toggle("tw-lit", on);
    };
    chart.on("mouseover", light(true));
    chart.on("mouseout", light(false));
  };

  // -- tables: sorted by a click on a head; what has no number comes last ----------------------------------------------
  for (const button of document.querySelectorAll(".tw-table th button")) {
    button.addEventListener("click", () => {
      const head = button.parentElement, table = head.closest("table"), body = table.tBodies[0];
      const sign = head.ariaSort === "descending" ? 1 : -1, place = head.cellIndex;
      for (const other of table.querySelectorAll("th")) other.removeAttribute("aria-sort");
      head.ariaSort = sign === 1 ? "ascending" : "descending";
      const value = (row) => row.cells[place].dataset.value, rows = [...body.rows];
      const [known, rest] = [rows.filter((row) => value(row) !== undefined), rows.filter((row) => value(row) === undefined)];
      const text = (a, b) => sign * a.cells[place].textContent.localeCompare(b.cells[place].textContent);
      known.sort((a, b) => (Number(value(a)) === Number(value(b)) ? 0 : sign * (Number(value(a)) - Number(value(b)))));
      body.append(...known, ...(known.length ? rest : rest.sort(text)));
    });
  }

  // -- a slider shows one picture of several -------------------------------------------------------------------------
  for (const box of document.querySelectorAll(".tw-steps")) {
    const slider = box.querySelector("input"), panels = [...box.querySelectorAll(":scope > .tw-step")];
    const move = () => {
      panels.forEach((panel, i) => { panel.hidden = i !== Number(slider.value); });
      box.querySelector("output").textContent = panels[slider.value].dataset.name;
      slider.ariaValueText = panels[slider.value].dataset.name;
      show(panels[slider.value]);
    };
    slider.addEventListener("input", move);
    move();
  }

  // -- words and patches: what they carry at each layer, for a pointer and for arrow keys ----------------------------
  const layers = (box, data, name, values) => {
    const chart = box.querySelector(".tw-layers > div"), title = box.querySelector(".tw-layers figcaption");
    title.textContent = `${data.what} ${name}: ${number(data.total(values))} at the input; at its position in each layer:`;
    const names = data.options.xAxis.data;
    chart.setAttribute("aria-label", `relevance at each layer: ${values.map((v, i) => `${names[i]} ${number(v)}`).join(", ")}`);
    const drawn = { ...data.options, series: [{ ...data.options.series[0], data: values.map((v) => ({ value: v, itemStyle: { color: v > 0 ? "--up" : "--down" } })) }] };
    draw(chart, drawn).resize();
  };
  for (const box of document.querySelectorAll(".tw-bylayer")) {
    const data = read(box, "layers");
    const marks = [...box.querySelectorAll("[data-mark]")];
    const choose = (mark) => {
      for (const other of marks) { other.classList.toggle("tw-lit", other === mark); other.tabIndex = other === mark ? 0 : -1; }
      const i = Number(mark.dataset.mark);
      layers(box, { ...data, total: () => data.values[i] }, mark.dataset.name, data.rows.map((row) => row[i]));
    };
    for (const mark of marks) {
      mark.addEventListener("mouseenter", () => choose(mark));
      mark.addEventListener("focus", () => choose(mark));
    }
    box.addEventListener("keydown", (event) => {
      const at = marks.indexOf(event.target);
      const to = { ArrowRight: at + 1, ArrowLeft: at - 1, ArrowDown: at + data.across, ArrowUp: at - data.across, Home: 0, End: marks.length - 1 }[event.key];
      if (marks[to]) { event.preventDefault(); marks[to].focus(); }
    });
    choose(marks[data.first]);
  }

  show(document);
  addEventListener("resize", () => charts.forEach((chart) => chart.resize()));
  // Paper is white, whatever the screen is.
  const printing = (on) => () => { root.classList.toggle("tw-printed", on); show(document); again(); };
  addEventListener("beforeprint", printing(true));
  addEventListener("afterprint", printing(false));
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", again);
  for (const details of document.querySelectorAll("details")) details.addEventListener("toggle", () => show(details));
})();
