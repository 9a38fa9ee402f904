/* page_style.c - style and script of the pages. Everything is inline: a page fetches nothing. */
#include "train/page.h"

static const char *const styles[] = {
    ":root{--bg:#fff;--fg:#1a1c1e;--soft:#5c6166;--line:#d4d8dc;--card:#f5f6f8;--good:#00704f;--bad:#b03a00;--link:#0b5cad}",
    "@media (prefers-color-scheme:dark){:root{--bg:#16181b;--fg:#e6e7e9;--soft:#a3a9b0;--line:#3d4349;--card:#202327;--good:#5fd0a5;"
    "--bad:#ff9d63;--link:#7db8f5}}",
    "*{box-sizing:border-box}",
    "body{margin:0;background:var(--bg);color:var(--fg);font:15px/1.5 system-ui,-apple-system,'Segoe UI',Roboto,'DejaVu Sans',sans-serif}",
    "main{max-width:1180px;margin:0 auto;padding:16px 20px 60px}",
    "h1{font-size:1.6em;margin:.2em 0 .1em;overflow-wrap:anywhere}",
    "h2{font-size:1.25em;margin:2em 0 .5em;padding-top:.5em;border-top:1px solid var(--line)}",
    "h3{font-size:1.05em;margin:1.4em 0 .3em}p{margin:.4em 0 .7em;max-width:75em}",
    "a{color:var(--link)}nav{display:flex;flex-wrap:wrap;gap:.2em 1.1em;margin:.6em 0 1em}",
    ".soft,figcaption,.missing,th{color:var(--soft)}.missing{border-left:3px solid var(--line);padding-left:.7em}",
    ".state{display:inline-block;border-radius:.8em;padding:0 .7em;background:var(--card);border:1px solid var(--line);font-weight:600;"
    "font-size:.65em;vertical-align:middle}",
    ".facts{display:grid;grid-template-columns:repeat(auto-fill,minmax(min(215px,45%),1fr));gap:8px;margin:.8em 0;padding:0}",
    ".facts div{background:var(--card);border-radius:6px;padding:.45em .7em;break-inside:avoid;overflow-wrap:anywhere}",
    ".facts dt{color:var(--soft);font-size:.86em}.facts dd{margin:0;font-weight:600}.facts dd small{display:block;font-weight:400;"
    "color:var(--soft)}",
    ".findings{padding-left:0;list-style:none}.findings li{padding:.28em 0 .28em 1.9em;position:relative;max-width:75em}",
    ".findings li::before{position:absolute;left:.25em;font-weight:700}",
    ".findings .bad::before{content:'!';color:var(--bad)}.findings .good::before{content:'\\2713';color:var(--good)}",
    ".findings .note::before{content:'\\2022';color:var(--soft)}",
    "table{border-collapse:collapse;font-variant-numeric:tabular-nums;font-size:.92em;margin:.5em 0}",
    ".words{text-align:left}td:first-child{vertical-align:top}.value{white-space:normal;vertical-align:top;max-width:26em;overflow-wrap:anywhere}.wide{overflow-x:auto}th,td{padding:.15em .8em .15em 0;text-align:right;white-space:nowrap}th{font-weight:500}",
    "th:first-child,td:first-child{text-align:left}tbody tr{border-top:1px solid var(--line)}",
    "figure{margin:1.1em 0 1.6em;break-inside:avoid}figcaption{margin-bottom:.35em;max-width:75em;font-size:.94em}",
    "figcaption b{color:var(--fg);font-size:1.06em}",
    ".frame{display:grid;grid-template-columns:1.5em var(--w) minmax(0,1fr);grid-template-rows:auto 1.35em 1.4em;padding-right:1.2em}",
    ".yn{grid-area:1/1;writing-mode:vertical-rl;transform:rotate(180deg);text-align:center;font-size:.82em;color:var(--soft);"
    "overflow:hidden;white-space:nowrap;max-height:var(--h)}",
    ".yt{grid-area:1/2;position:relative}.yt span{position:absolute;right:.45em;transform:translateY(-50%);font-size:.78em;"
    "line-height:1;white-space:nowrap;color:var(--soft);max-width:100%;overflow:hidden;text-overflow:ellipsis}",
    ".area{grid-area:1/3;position:relative;height:var(--h);border:1px solid var(--line)}",
    ".area img,.area svg{position:absolute;inset:0;width:100%;height:100%;display:block}",
    ".map .area{background:repeating-linear-gradient(45deg,var(--card) 0 4px,var(--line) 4px 5px)}",
    ".area img{image-rendering:pixelated}.area svg{overflow:visible}",
    ".area path{fill:none;stroke-width:1.7;vector-effect:non-scaling-stroke;stroke-linejoin:round;stroke-linecap:round}",
    ".area path.dot{stroke-width:6}.area path.grid{stroke:var(--line);stroke-width:1}",
    ".area i{position:absolute;top:0;bottom:0;width:0;border-left:1.5px dashed var(--fg);opacity:.55}",
    ".xt{grid-area:2/3;position:relative}.xt span{position:absolute;top:.3em;transform:translateX(-50%);font-size:.78em;line-height:1;"
    "white-space:nowrap;color:var(--soft)}",
    ".xn{grid-area:3/3;text-align:center;font-size:.82em;color:var(--soft)}",
    ".key{display:flex;flex-wrap:wrap;gap:.1em 1.2em;font-size:.86em;padding-left:2em;align-items:center}",
    "@media (max-width:640px){.xt .o{display:none}.key{padding-left:.5em}}",
    ".curves .key span{white-space:nowrap}.key svg{width:26px;height:.8em;vertical-align:middle;margin-right:.35em;overflow:visible}",
    ".key path{fill:none;stroke-width:2.5}.key b{font-weight:600;font-variant-numeric:tabular-nums}",
    ".bar{display:inline-block;width:min(220px,40vw);height:.85em;vertical-align:middle;margin:0 .5em;border:1px solid var(--line)}",
    ".patch{display:inline-block;width:1em;height:.85em;vertical-align:middle;margin-right:.35em;border:1px solid var(--line)}",
    ".none{background:repeating-linear-gradient(45deg,var(--card) 0 3px,var(--line) 3px 4px)}",
    "details{margin:.5em 0;border-left:3px solid var(--line);padding-left:.8em}summary{cursor:pointer;font-weight:600}",
    ".text{white-space:pre-wrap;overflow-wrap:anywhere;font:13px/1.65 ui-monospace,'DejaVu Sans Mono',Menlo,monospace;"
    "background:var(--card);border-radius:6px;padding:.6em .8em;margin:.4em 0;max-width:110ch}",
    ".text span{border-bottom:3px solid transparent}",
    ".tip{position:fixed;pointer-events:none;background:var(--fg);color:var(--bg);padding:.2em .6em;border-radius:4px;font-size:.85em;"
    "white-space:pre;display:none;z-index:9;font-variant-numeric:tabular-nums}",
    ".cross{position:absolute;top:0;bottom:0;width:0;border-left:1px solid var(--fg);opacity:.5;display:none;pointer-events:none}",
    ".tabs>input{position:absolute;opacity:0}.tabs>label{display:inline-block;padding:.2em .9em;border:1px solid var(--line);"
    "border-radius:5px;margin:0 .3em .3em 0;cursor:pointer}.tabs>input:focus-visible+label{outline:2px solid var(--link)}",
    ".tabs>input:checked+label{background:var(--fg);color:var(--bg)}.tabs>section{display:none}",
    ".tabs>input:nth-of-type(1):checked~section:nth-of-type(1),.tabs>input:nth-of-type(2):checked~section:nth-of-type(2),"
    ".tabs>input:nth-of-type(3):checked~section:nth-of-type(3){display:block}",
    "*{print-color-adjust:exact;-webkit-print-color-adjust:exact}",
    "@media print{:root{--bg:#fff;--fg:#000;--soft:#444;--line:#bbb;--card:#f3f3f3;--good:#00704f;--bad:#b03a00}body{font-size:11px}"
    "main{max-width:none;padding:0}nav,.tip,.cross{display:none!important}h2,h3,summary{break-after:avoid}"
    ".tabs>section{display:block}.tabs>input,.tabs>label{display:none}.area{height:calc(var(--h)*.62)}figure{margin:.6em 0 .9em}h2{margin-top:1.2em}}",
};

void mu_page_styles(mu_page *p) {
    mu_page_put(p, "<style>\n");
    for (size_t i = 0; i < sizeof styles / sizeof *styles; i++) mu_page_put(p, "%-s\n", styles[i]);
    mu_page_put(p, "</style>\n");
}

/* Under the pointer: of curves the values at the nearest x; of a map the value of the cell, from the colour of its pixel. A figure
 * whose data could be read gets the attribute data-ready. */
static const char *const scripts[] = {
    "(function(){'use strict';",
    "var maps=JSON.parse(document.getElementById('colours').textContent),tip=document.createElement('div');",
    "tip.className='tip';document.body.appendChild(tip);",
    "function show(e,text){tip.textContent=text;tip.style.display='block';var w=tip.offsetWidth,h=tip.offsetHeight;",
    "tip.style.left=Math.max(4,Math.min(innerWidth-w-4,e.clientX+14))+'px';",
    "tip.style.top=(e.clientY+h+24>innerHeight?e.clientY-h-10:e.clientY+16)+'px'}",
    "function num(v){var a=Math.abs(v);return v===0?'0':a>=1e5||a<1e-3?v.toExponential(2):String(+v.toPrecision(4))}",
    "function curves(area,d,cross){var best=function(x,xs){var lo=0,hi=xs.length-1;while(hi-lo>1){var m=lo+hi>>1;if(xs[m]<x)lo=m;else hi=m}",
    "return x-xs[lo]<xs[hi]-x?lo:hi};return function(e){var r=area.getBoundingClientRect(),x=d.x0+(e.clientX-r.left)/r.width*(d.x1-d.x0);",
    "var at=null,rows=d.curves.map(function(c){var i=best(x,c.x);if(at===null||Math.abs(c.x[i]-x)<Math.abs(at-x))at=c.x[i];",
    "return c.name+'  '+num(c.y[i])});if(at===null)return;cross.style.display='block';",
    "cross.style.left=100*(at-d.x0)/(d.x1-d.x0||1)+'%';show(e,d.x+' '+num(at)+'\\n'+rows.join('\\n'))}}",
    "function map(area,d,img){var c=document.createElement('canvas'),g=c.getContext('2d',{willReadFrequently:true}),index={};",
    "c.width=img.naturalWidth;c.height=img.naturalHeight;if(c.width!==d.cols||c.height!==d.rows)return null;g.drawImage(img,0,0);",
    "for(var i=1;i<256;i++){var k=maps[d.colours].substr(6*i,6);if(!(k in index))index[k]=i}",
    "function level(col,row){var p=g.getImageData(col,row,1,1).data;if(!p[3])return 0;",
    "return index[((1<<24)+(p[0]<<16)+(p[1]<<8)+p[2]).toString(16).slice(1)]||0}",
    "function value(l){if(l===0)return d.none;if(d.states)return d.states[l-1];if(l===1)return d.special;",
    "var v=d.low+(l-2)/253*(d.high-d.low);return(d.log2?num(+Math.pow(2,v).toPrecision(3)):num(+v.toPrecision(3)))+' '+d.unit}",
    "function name(names,first,i){return names?names[i]:first+i}return function(e){var r=area.getBoundingClientRect(),",
    "col=Math.min(d.cols-1,Math.max(0,Math.floor((e.clientX-r.left)/r.width*d.cols))),",
    "row=Math.min(d.rows-1,Math.max(0,Math.floor((e.clientY-r.top)/r.height*d.rows))),",
    "x=d.x1>d.x0?num(Math.round(d.x0+(col+1)/d.cols*(d.x1-d.x0))):name(d.colNames,0,col);",
    "show(e,d.row+' '+name(d.rowNames,d.rowFirst,row)+', '+d.col+' '+x+'\\n'+value(level(col,row)))}}",
    "document.querySelectorAll('figure').forEach(function(f){var s=f.querySelector('script'),area=f.querySelector('.area');if(!s||!area)return;",
    "var d=JSON.parse(s.textContent),cross=document.createElement('div');cross.className='cross';area.appendChild(cross);",
    "function listen(handler){if(!handler)return;f.setAttribute('data-ready','');area.addEventListener('pointermove',handler);",
    "area.addEventListener('pointerleave',function(){tip.style.display='none';cross.style.display='none'})}",
    "var img=area.querySelector('img');if(!img)listen(curves(area,d,cross));",
    "else if(img.complete&&img.naturalWidth)listen(map(area,d,img));else img.addEventListener('load',function(){listen(map(area,d,img))})});",
    "addEventListener('beforeprint',function(){var all=document.querySelectorAll('details:not(.aside)');",
    "if(all.length<=60)all.forEach(function(d){d.open=true})})",
    "})();",
};

static void put_colour_maps(mu_page *p) {
    mu_page_put(p, "<script type=\"application/json\" id=\"colours\">[");
    for (int kind = 0; kind < MU_N_COLOURS; kind++) {
        mu_colour_map rgb;
        mu_colours_fill((mu_colours)kind, rgb);
        mu_page_put(p, "%-s\"", kind ? "," : "");
        for (int i = 0; i < 256; i++) fprintf(p->out, "%02x%02x%02x", rgb[i][0], rgb[i][1], rgb[i][2]);
        mu_page_put(p, "\"");
    }
    mu_page_put(p, "]</script>\n");
}

void mu_page_scripts(mu_page *p) {
    put_colour_maps(p);
    mu_page_put(p, "<script>\n");
    for (size_t i = 0; i < sizeof scripts / sizeof *scripts; i++) mu_page_put(p, "%-s\n", scripts[i]);
    mu_page_put(p, "</script>\n");
}
