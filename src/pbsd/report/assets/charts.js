"use strict";
// Charts by plotly.js: drawn when they come into view, in the theme's colours; their numbers as tables when asked for.
(() => {
  const SERIES = 8;
  const DASHES = ["solid", "dash", "dot"];
  const transparent = "rgba(0, 0, 0, 0)";
  const faint = (color, share) => color.replace(/^rgba?\(([^,]+),([^,]+),([^,)]+).*$/, `rgba($1,$2,$3, ${share})`);

  function painted(trace) {
    const kind = trace.meta.color;
    if (kind === "heat") {
      return { ...trace, colorscale: [[0, theme.color("heat-0")], [1, theme.color("heat-1")]],
        textfont: { size: 14, color: theme.color("text") } };
    }
    const color = theme.color(`series-${kind % SERIES}`);
    const made = { ...trace, line: { width: 2.5, dash: DASHES[Math.floor(kind / SERIES) % DASHES.length], ...trace.line, color },
      marker: { ...trace.marker, color, line: { width: 1.5, color: theme.color("surface") } } };
    if (trace.error_x) made.error_x = { ...trace.error_x, color: faint(color, 0.6) };
    if (trace.fill) made.fillcolor = faint(color, 0.16);
    return made;
  }

  function layout({ data, layout: own }, width) {
    const text = theme.color("text"), muted = theme.color("muted"), line = theme.color("line");
    const axis = (given) => ({ gridcolor: line, zerolinecolor: line, linecolor: line, automargin: true, ...given,
      title: { font: { size: 13, color: muted }, standoff: 12, ...given?.title }, tickfont: { size: 12, color: muted } });
    return {
      height: 380, dragmode: matchMedia("(pointer: fine)").matches ? "zoom" : false,
      showlegend: data.filter((trace) => trace.name && trace.showlegend !== false).length > 1,
      ...own, width: Math.max(width, own.width ?? 0),
      paper_bgcolor: transparent, plot_bgcolor: transparent, margin: { l: 8, r: 20, t: 12, b: 8 },
      font: { family: getComputedStyle(document.body).fontFamily, size: 13, color: text },
      legend: { orientation: "h", x: 0, y: 1.02, yanchor: "bottom", font: { color: text } },
      hoverlabel: { bgcolor: theme.color("surface"), bordercolor: line, font: { color: text }, namelength: 40 },
      xaxis: axis(own.xaxis), yaxis: axis(own.yaxis),
    };
  }

  /** Runs plotly.js, which lies inert in the page. The policy knows its hash. */
  function loadPlotly() {
    const source = document.getElementById("plotly-source");
    if (!source) return;
    const script = document.createElement("script");
    script.textContent = source.textContent;
    source.remove();
    document.head.append(script);
  }

  function draw(figure) {
    loadPlotly();
    const place = figure.querySelector(".plot");
    const { plot } = chosen(figure);
    figure.dataset.drawn = "";
    // The plot's own width, so that it cannot push the page wider while it is measured.
    Plotly.react(place, plot.data.map(painted), layout(plot, place.clientWidth),
      { displayModeBar: false, doubleClick: "reset" });
    if (place.scrollWidth > place.clientWidth) place.tabIndex = 0; // it scrolls
  }

  function chosen(figure) {
    const pickers = [...figure.querySelectorAll("select")];
    const place = pickers.reduce((before, picker) => before * picker.options.length + Number(picker.value), 0);
    return reportData.charts[figure.dataset.chart][place];
  }

  function fillNumbers(figure) {
    if (!figure.querySelector("details").open) return;
    figure.querySelector(".numbers").replaceChildren(...chosen(figure).tables.map(table));
  }

  const figures = [...document.querySelectorAll("figure[data-chart]")];
  const seen = new IntersectionObserver((entries) => {
    for (const { isIntersecting, target } of entries) {
      if (!isIntersecting) continue;
      seen.unobserve(target);
      draw(target);
    }
  }, { rootMargin: "200px" });

  for (const figure of figures) {
    const { height } = chosen(figure).plot.layout;
    figure.querySelector(".plot").style.minHeight = `${height ?? 380}px`;
    for (const picker of figure.querySelectorAll("select")) {
      picker.addEventListener("change", () => { draw(figure); fillNumbers(figure); });
    }
    figure.querySelector("details").addEventListener("toggle", () => fillNumbers(figure));
  }
  // After the page is there and its first texts are painted.
  addEventListener("load", () => setTimeout(() => figures.forEach((figure) => seen.observe(figure)), 50));
  const redraw = () => figures.filter((figure) => "drawn" in figure.dataset).forEach(draw);
  theme.onChange(redraw);
  let waiting;
  addEventListener("resize", () => { clearTimeout(waiting); waiting = setTimeout(redraw, 150); });
})();
