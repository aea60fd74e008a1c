// Explicit-state model checker for the replicated log protocol of DESIGN.md (sections 4-7).
// One file: model (successors), invariants, BFS with exact server/reconfigurer symmetry, random deep walks, trace replay.
// usage: mc key=value ...        see Cfg below.  "mode=bfs|walk"
//
// Network abstraction (superset of FIFO streams with delay, loss and reconnect): a Store(o) that a sequencer may have sent
// can arrive at any later time, in any order, any number of times; an ack that a server sent may be received at any later
// time or never; a paused sequencer is one whose messages arrive late. Attempts to reconfigure: R at a time, any number in all,
// each may stop anywhere (abandon) and `sealOnly` is the seal of an attempt whose answer got lost.
// Values: a sequencer gives an offset once, so the value at (segment, offset) is determined; stores are bit masks.
#include <cstdio>
#include <cstdint>
#include <cstring>
#include <cstdlib>
#include <string>
#include <vector>
#include <algorithm>
#include <map>
#include <chrono>
#include <array>
using namespace std;
typedef uint8_t u8; typedef uint64_t u64;

struct Cfg {
  int N=3,W=2,R=2,Q=-1,FQ=-1,wipes=-1,wq=-1; int A[2]={2,1}; int segs=2;
  int ft=0;            // find-tail rounds modelled
  int vol=1;           // known committed tail is volatile
  int ctAfterSeal=1;   // sealed server takes a pushed committed tail
  int tailMax=0;       // local tail = max(held+1, known committed)
  int countTails=0;    // variant: seal answer (local tail) counts as a copy of [C,tail)
  int evidence=1;      // repair stores carry C as evidence for the prefix rule
  int repUnsealed=1;   // repair onto opened but unsealed member accepted
  int open0=0;         // segment 0 starts un-opened
  int awaitOpen=1;     // sequencer waits for a write quorum of opens before it stores
  int sealOnly=1;
  int prune=0;         // a stale attempt on a closed segment is allowed (0) or not (1)
  int repl=0;          // replacement servers may join segment 0 while it is ended (DESIGN.md section 6); further disks may be lost afterwards
  int mReplPart=0,     // mutant: a replacement is filled from C only, not from the segment's base
      mReplVote=0,     // mutant: a replacement that was created sealed answers a seal as if it were a member
      mReplEarly=0,    // mutant: the CAS names replacements that are not full yet
      mReplStale=0;    // mutant: what a replacement holds is counted without a look whether it reaches this attempt's M
  // mutants
  int mUnsealed=0,mRepairKc=0,mNoPrefix=0,mAckEarly=0,mSealEarly=0,mWipeSeal=0,mWipeFt=0,mWipeStore=0,mBel=0,mImplicit=0,
      mDupAck=0,mSealRace=0,mSealUnk=0,mDef=0,mFtJoin=0,mI3=0,mLosEnd=0,mCond=0,mTrunc=0,mOpenUnseal=0,mRepairOne=0,mMin=0,mResume=0,mRepairAck=0,live=0,repC=0,learnEnd=0,mStaleRead=0,mStuckWipe=0,dmg=0;
  u64 maxStates=60000000; int secs=300; int depth=60; u64 seed=1; string mode="bfs";
} c;

// rj: this new disk was created sealed as a replacement for segment 0 (durable); rn: the chain names it as a member of segment 0
struct Srv { u8 held[2],ack[2],uns[2],kc[2],sealed[2],opened[2],usl[2],inc,ns1,ftc,rj,rn,ans[3],p[3]; };
struct Rec { u8 ph,tg,M,C; };
struct U { Srv s[4]; Rec r[3]; u8 len,end[2],ct[2],ready[2],ever[2],ftp,ftk,noted,lb,bel,defd[2],cond[2]; };
struct St { u64 g; u64 s[4]; };

static inline u64 packS(const Srv&x){ u64 w=0;int b=0; auto P=[&](u64 v,int n){w|=v<<b;b+=n;};
  for(int k=0;k<2;k++){P(x.held[k],3);P(x.ack[k],3);P(x.uns[k],3);P(x.kc[k],2);P(x.sealed[k],1);P(x.opened[k],1);P(x.usl[k],1);}
  P(x.inc,1);P(x.ns1,1);P(x.ftc,1);P(x.rj,1);P(x.rn,1); for(int i=0;i<3;i++){P(x.ans[i],1);P(x.p[i],2);} return w; }
static inline void unpS(u64 w,Srv&x){ auto G=[&](int n){u64 v=w&((1ull<<n)-1);w>>=n;return (u8)v;};
  for(int k=0;k<2;k++){x.held[k]=G(3);x.ack[k]=G(3);x.uns[k]=G(3);x.kc[k]=G(2);x.sealed[k]=G(1);x.opened[k]=G(1);x.usl[k]=G(1);}
  x.inc=G(1);x.ns1=G(1);x.ftc=G(1);x.rj=G(1);x.rn=G(1); for(int i=0;i<3;i++){x.ans[i]=G(1);x.p[i]=G(2);} }
static inline u64 packG(const U&u){ u64 w=0;int b=0; auto P=[&](u64 v,int n){w|=v<<b;b+=n;};
  for(int i=0;i<3;i++){P(u.r[i].ph,2);P(u.r[i].tg,1);P(u.r[i].M,2);P(u.r[i].C,2);} // 21
  P(u.len,2);for(int k=0;k<2;k++){P(u.end[k],2);P(u.ct[k],2);P(u.ready[k],1);P(u.ever[k],2);P(u.defd[k],1);P(u.cond[k],2);}
  P(u.ftp,1);P(u.ftk,1);P(u.noted,2);P(u.lb,3);P(u.bel,3); return w; }
static inline void unpG(u64 w,U&u){ auto G=[&](int n){u64 v=w&((1ull<<n)-1);w>>=n;return (u8)v;};
  for(int i=0;i<3;i++){u.r[i].ph=G(2);u.r[i].tg=G(1);u.r[i].M=G(2);u.r[i].C=G(2);}
  u.len=G(2);for(int k=0;k<2;k++){u.end[k]=G(2);u.ct[k]=G(2);u.ready[k]=G(1);u.ever[k]=G(2);u.defd[k]=G(1);u.cond[k]=G(2);}
  u.ftp=G(1);u.ftk=G(1);u.noted=G(2);u.lb=G(3);u.bel=G(3); }
static void unpack(const St&t,U&u){ memset(&u,0,sizeof u); unpG(t.g,u); for(int i=0;i<c.N;i++)unpS(t.s[i],u.s[i]); }
static bool less_(const St&a,const St&b){ if(a.g!=b.g)return a.g<b.g; for(int i=0;i<c.N;i++) if(a.s[i]!=b.s[i]) return a.s[i]<b.s[i]; return false; }
static bool eq_(const St&a,const St&b){ if(a.g!=b.g)return false; for(int i=0;i<c.N;i++) if(a.s[i]!=b.s[i])return false; return true; }
static void canon(const U&u0,St&best){
  static const int P3[6][3]={{0,1,2},{1,0,2},{0,2,1},{2,1,0},{1,2,0},{2,0,1}};
  int np = c.R==1?1: c.R==2?2:6; u64 base[4]; for(int i=0;i<c.N;i++) base[i]=packS(u0.s[i]);
  u64 g0=packG(u0); bool first=true;
  for(int q=0;q<np;q++){ const int*p=P3[q]; St t; memset(&t,0,sizeof t);
    t.g=g0&~((1ull<<21)-1); for(int i=0;i<3;i++) t.g|=((g0>>(7*p[i]))&127)<<(7*i);
    if(!first && t.g>best.g) continue;
    for(int s=0;s<c.N;s++){ u64 w=base[s]&((1ull<<33)-1); for(int i=0;i<3;i++) w|=((base[s]>>(33+3*p[i]))&7)<<(33+3*i); t.s[s]=w; }
    for(int i=1;i<c.N;i++){u64 v=t.s[i];int j=i;while(j>0&&t.s[j-1]>v){t.s[j]=t.s[j-1];j--;}t.s[j]=v;}
    if(first||less_(t,best)){best=t;first=false;}
  }
}
static inline int top(u8 m){ return m&4?3:m&2?2:m&1?1:0; }
static inline int tailOf(const Srv&x,int k){ int t=top(x.held[k]|(c.dmg==1?x.uns[k]:0)); if(c.tailMax&&x.kc[k]>t)t=x.kc[k]; return t; }
static inline bool alive(const Srv&x,int k){ return k==0? x.inc==0||x.rn : x.inc==x.ns1; }
static inline bool full(const Srv&x,int from,int M){ for(int o=from;o<M;o++) if(!(x.held[0]>>o&1)) return false; return true; }
static inline bool closed(const U&u,int k){ return u.len>k; }
static int base(const U&u,int k){ int b=0; for(int i=0;i<k;i++) b+=u.end[i]; return b; }
static int curLB(const U&u){ int b=base(u,u.len); if(u.len<2) b+=max(u.ct[u.len],u.ever[u.len]); return b; }

static const char* inv(const U&u){ // state invariants
  for(int k=0;k<c.segs;k++){
    if(closed(u,k)){
      if(u.ct[k]>u.end[k]) return "I1/I3: acked record at or above the chain's end";
      if(u.ever[k]>u.end[k]) return "I2/I5: a reader was served a tail above the segment's end";
      for(int s=0;s<c.N;s++) if(u.s[s].kc[k]>u.end[k]) return "I5: server's readable tail above the segment's end";
      if(u.defd[k] && u.end[k]>u.ct[k]) return "I7: 'definitely not in the log' was said of a record that is in the chain";
      if(u.cond[k] && c.mDef && u.end[k]>u.cond[k]-1) return "I7: 'definitely not in the log' was said of a record that is in the chain";
      if(u.cond[k] && c.mCond && u.end[k]<u.cond[k]) return "I4: a failed condition named a tail that the log never had";
      if(k==0&&u.bel && u.bel-1!=u.end[0]) return "I6: reader took a segment end that is not the chain's";
    }
    int need=max((int)max(u.ct[k],u.ever[k]),closed(u,k)?(int)u.end[k]:0);
    for(int o=0;o<need;o++){ bool h=false; for(int s=0;s<c.N;s++) h|=(u.s[s].held[k]>>o)&1; if(!h) return closed(u,k)&&o>=u.ct[k]? "I6: readable offset held by no server":"I1: acked record held by no server"; }
  }
  return nullptr;
}

struct Emit { virtual void operator()(const U&v,const char*bad,int a,int x,int y,int z)=0; };
enum {OPEN,STORE,CHECK,LAND,SYNC,CTPUSH,ADV,RESTART,WIPE,SEALONLY,SEAL,REPAIR,CASWIN,CASLOSE,ABANDON,FTSTART,FTCONF,FTDONE,FTJOIN,BEL,DEFI,COND,STUCK,MISS,LEARN,READT,NOLIVE,DAMAGE,JOIN,FILL};

static void succ(const U&u,Emit&E){
  int N=c.N; U v;
  auto go=[&](int a,int x=0,int y=0,int z=0,const char*bad=nullptr){ if(!bad) bad=inv(v); E(v,bad,a,x,y,z); };
  auto clearR=[&](U&w,int r){ w.r[r]=Rec{0,0,0,0}; for(int s=0;s<N;s++){w.s[s].ans[r]=0;w.s[s].p[r]=0;} };
  int K=min((int)u.len,c.segs-1);
  for(int k=0;k<=K;k++){
    // open
    for(int s=0;s<N;s++){ const Srv&x=u.s[s];
      if((alive(x,k)||c.mWipeStore)&&!x.opened[k]&&(!x.sealed[k]||c.mOpenUnseal)){ v=u; v.s[s].opened[k]=1; v.s[s].sealed[k]=0;
        int n=0; for(int t=0;t<N;t++) n+=v.s[t].opened[k]&&alive(v.s[t],k); if(n>=c.W) v.ready[k]=1; go(OPEN,k,s); } }
    bool rdy=u.ready[k]||!c.awaitOpen;
    for(int s=0;s<N;s++){ const Srv&x=u.s[s];
      bool id=alive(x,k)||c.mWipeStore;
      // store
      if(rdy&&id&&!u.defd[k]) for(int o=0;o<c.A[k];o++){ u8 b=1<<o;
        bool pre=o==0||((x.held[k]|(c.dmg==1?x.uns[k]:0))>>(o-1)&1)||x.kc[k]>=o||c.mNoPrefix;
        bool op=x.opened[k]||(c.mImplicit&&!x.sealed[k]);
        if(!op||!pre) continue;
        if(c.mSealRace){
          if(!x.sealed[k]&&!(x.ack[k]&b)&&!(x.uns[k]&b)){ v=u; v.s[s].uns[k]|=b; go(CHECK,k,s,o); }
          if(x.uns[k]&b){ v=u; v.s[s].uns[k]&=~b; v.s[s].held[k]|=b; v.s[s].ack[k]|=b; go(LAND,k,s,o); }
        } else if(!x.sealed[k]){
          if(!(x.held[k]&b)){ v=u; v.s[s].opened[k]=1; v.s[s].held[k]|=b; v.s[s].ack[k]|=b; if(c.mAckEarly) v.s[s].uns[k]|=b; if(c.dmg) v.s[s].uns[k]&=~b; 
             if(c.mImplicit) v.ready[k]=1; go(STORE,k,s,o); }
          else if(!(x.ack[k]&b)){ v=u; v.s[s].ack[k]|=b; go(STORE,k,s,o); }
        } else if(c.mDupAck&&(x.held[k]&b)&&!(x.ack[k]&b)){ v=u; v.s[s].ack[k]|=b; go(STORE,k,s,o); }
      }
      // committed tail rides or is pushed
      if(alive(x,k)&&(x.opened[k]||x.sealed[k])&&(!x.sealed[k]||c.ctAfterSeal))
        for(int t=x.kc[k]+1;t<=u.ct[k];t++){ v=u; v.s[s].kc[k]=t; go(CTPUSH,k,s,t); }
      if(c.learnEnd&&closed(u,k)&&alive(x,k)&&x.kc[k]<u.end[k]){ v=u; v.s[s].kc[k]=u.end[k]; go(LEARN,s,k,u.end[k]); }
      if(c.mStaleRead&&alive(x,k)&&x.opened[k]&&!x.sealed[k]&&base(u,k)+x.kc[k]<curLB(u)){ v=u; go(READT,s,k,x.kc[k],"promise 2: a read 'to the tail' ended below a record acked before it began"); }
      // a seal whose answer is lost
      if(c.sealOnly&&alive(x,k)&&!x.sealed[k]&&!(c.mSealUnk&&!x.opened[k])){ v=u; v.s[s].sealed[k]=1; if(c.mSealEarly)v.s[s].usl[k]=1; go(SEALONLY,k,s); }
    }
    // sequencer takes the next offset as committed; the client is acked
    if(u.ct[k]<c.A[k]&&!u.defd[k]){ int n=0; for(int s=0;s<N;s++) n+=(u.s[s].ack[k]>>u.ct[k])&1;
      if(n>=c.W){ v=u; v.ct[k]++; if(v.ever[k]<=v.ct[k]) v.ever[k]=0; go(ADV,k,u.ct[k],0,c.mI3&&closed(u,k)?"I3 literal: an ack left after seal + CAS":nullptr);} }
    // find-tail
    if(c.ft&&!u.ftp){ v=u; v.ftp=1; v.ftk=k; v.noted=u.ct[k]; v.lb=curLB(u); go(FTSTART,k,u.ct[k]); }
    if(c.mDef==1&&!u.defd[k]) { bool z=false; for(int s=0;s<N;s++) z|=alive(u.s[s],k)&&u.s[s].sealed[k]; if(z){v=u;v.defd[k]=1;go(DEFI,k);} }
    if(c.mDef==2&&!u.cond[k]) for(int o=0;o<c.A[k];o++){ int n=0; for(int s=0;s<N;s++) n+=alive(u.s[s],k)&&u.s[s].sealed[k]&&!(u.s[s].held[k]>>o&1)&&!(u.s[s].ack[k]>>o&1); if(n>=c.Q){v=u;v.cond[k]=o+1;go(DEFI,k,o);break;} }
    if(c.mCond&&!u.cond[k]&&!closed(u,k)){ v=u; v.cond[k]=c.A[k]; go(COND,k,c.A[k]); }
  }
  if(c.ft&&u.ftp){ int k=u.ftk,n=0; for(int s=0;s<N;s++){ const Srv&x=u.s[s]; n+=x.ftc; if(!x.ftc&&(alive(x,k)||c.mWipeFt)&&!x.sealed[k]){v=u;v.s[s].ftc=1;go(FTCONF,k,s);} }
    if(n>=c.FQ){ v=u; int noted=c.mFtJoin==2?max(u.noted,u.ct[k]):u.noted; const char*bad=base(u,k)+noted<u.lb?"I4: find-tail answered below an acked or readable record":nullptr;
      if(noted>v.ct[k]) v.ever[k]=max((int)v.ever[k],noted); v.ftp=v.ftk=v.noted=v.lb=0; for(int s=0;s<N;s++)v.s[s].ftc=0; go(FTDONE,k,noted,0,bad); }
    if(c.mFtJoin){ v=u; v.lb=curLB(u); if(v.lb!=u.lb) go(FTJOIN,k,v.lb); } }
  int wiped=0; for(int s=0;s<N;s++) wiped+=(u.s[s].inc&&!u.s[s].rn)|(c.dmg?u.s[s].usl[0]:0);
  for(int s=0;s<N;s++){ const Srv&x=u.s[s];
    if((c.mAckEarly&&(x.uns[0]|x.uns[1]))||(c.mSealEarly&&(x.usl[0]|x.usl[1]))){ v=u; if(c.mAckEarly)v.s[s].uns[0]=v.s[s].uns[1]=0; v.s[s].usl[0]=v.s[s].usl[1]=0; go(SYNC,s); }
    if((c.vol&&(x.kc[0]|x.kc[1]))||(c.mAckEarly&&(x.uns[0]|x.uns[1]))||(c.mSealRace&&(x.uns[0]|x.uns[1]))||(c.mSealEarly&&(x.usl[0]|x.usl[1]))){ v=u; Srv&y=v.s[s];
      for(int k=0;k<2;k++){ if(c.vol)y.kc[k]=0; if(c.mAckEarly)y.held[k]&=~y.uns[k]; if(!c.dmg) y.uns[k]=0; if(y.usl[k]&&c.mSealEarly){y.sealed[k]=0;y.usl[k]=0;} } go(RESTART,s); }
    if(c.dmg&&(wiped<c.wipes||x.usl[0])) for(int k=0;k<=K;k++) if(alive(x,k)) for(int o=0;o<c.A[k];o++) if(x.held[k]>>o&1){ v=u; v.s[s].usl[0]=1; v.s[s].held[k]&=~(1<<o); if(c.dmg==1) v.s[s].uns[k]|=1<<o; go(DAMAGE,s,k,o); }
    if((wiped<c.wipes||(c.dmg&&x.usl[0]))&&!x.inc){ v=u; Srv&y=v.s[s]; y.inc=1; for(int k=0;k<2;k++){y.held[k]=y.kc[k]=y.sealed[k]=y.opened[k]=y.uns[k]=y.usl[k]=0;} go(WIPE,s); }
    if(c.mBel&&alive(x,0)&&x.sealed[0]&&!u.bel){ v=u; v.bel=1+(c.mBel==1?x.kc[0]:tailOf(x,0)); go(BEL,s,v.bel-1); }
  }
  for(int r=0;r<c.R;r++){ const Rec&R=u.r[r];
    int na=0; bool allAlive=true; for(int s=0;s<N;s++){ na+=u.s[s].ans[r]; }
    // seal answers
    if(R.ph<=1) for(int tg=(R.ph?R.tg:0);tg<=(R.ph?R.tg:K);tg++){ if(c.prune&&R.ph==0&&tg<u.len) continue; for(int s=0;s<N;s++){ const Srv&x=u.s[s]; if(x.ans[r]) continue;
        if(!alive(x,tg)&&!c.mWipeSeal&&!(c.mReplVote&&tg==0&&x.rj)) continue;
        v=u; v.r[r].ph=1; v.r[r].tg=tg; v.s[s].ans[r]=1;
        if(!c.mUnsealed&&!(c.mSealUnk&&!x.opened[tg])){ if(!x.sealed[tg]&&c.mSealEarly)v.s[s].usl[tg]=1; v.s[s].sealed[tg]=1; }
        int t=tailOf(x,tg); if(c.mMin) v.r[r].M= na==0? t : min((int)R.M,t); else v.r[r].M=max((int)R.M,t); v.r[r].C=max(R.C,x.kc[tg]); if(c.mMin)v.r[r].M=max(v.r[r].M,v.r[r].C);
        go(SEAL,r,s,tg); } }
    if((R.ph==1&&na>=c.Q)||R.ph==2){ int k=R.tg;
      for(int s=0;s<N;s++) if(u.s[s].ans[r]&&(!alive(u.s[s],k)||(k==0&&u.s[s].rn))) allAlive=false; if(c.dmg) for(int s=0;s<N;s++) if(u.s[s].ans[r]&&u.s[s].usl[0]) allAlive=false;
      if(R.ph==1&&allAlive&&!c.mWipeSeal){ // claims of section 6 step 2
        if(R.C>R.M&&(!closed(u,k)||!c.learnEnd)){ v=u; go(MISS,r,R.C,R.M,"I8: C above M"); }
        for(int o=R.C;o<R.M;o++){ bool h=false; for(int s=0;s<N;s++) h|=u.s[s].ans[r]&&(u.s[s].held[k]>>o&1); if(!h){v=u;go(MISS,r,o,0,"I8: offset in [C,M) missing from a whole undamaged seal quorum");} }
      }
      if(c.mStuckWipe) for(int o=R.C;o<R.M;o++){ bool h=false; for(int s=0;s<N;s++) h|=alive(u.s[s],k)&&(u.s[s].held[k]>>o&1); if(!h){v=u;go(MISS,r,o,0,"X4: this attempt can never finish: its M counts a record that no disk holds any more");} }
      U w=u; if(R.ph==1){ w.r[r].ph=2; for(int s=0;s<N;s++){ if(c.countTails&&u.s[s].ans[r]&&alive(u.s[s],k)){int t=min((int)R.M,top(u.s[s].held[k])); w.s[s].p[r]=t>R.C?t-R.C:0;} w.s[s].ans[r]=0; } if(R.M==R.C) w.r[r].ph=1; }
      else w=u;
      int M=max(R.M,R.C),C=R.C; 
      if(c.mTrunc){ }
      // replacement servers: only when fewer than a write quorum of the segment's disks can ever answer again
      int ever=0; for(int s=0;s<N;s++) ever+=alive(u.s[s],k);
      bool joining=c.repl&&k==0&&!closed(u,0)&&ever<c.W;
      auto counts=[&](const Srv&x){ return joining&&x.rj&&!alive(x,0)&&(c.mReplEarly||(c.mReplStale&&x.held[0])||full(x,c.mReplPart?C:0,M)); };
      int filled=0; for(int s=0;s<N;s++) filled+=counts(w.s[s]);
      if(joining) for(int t=0;t<N;t++){ const Srv&x=w.s[t]; if(alive(x,0)) continue;
        if(!x.rj){ v=w; v.s[t].rj=1; v.s[t].sealed[0]=1; go(JOIN,r,t); continue; }
        int o=c.mReplPart?C:0; while(o<M&&(x.held[0]>>o&1)) o++; if(o>=M) continue;
        bool src=false; for(int s=0;s<N;s++) src|=alive(w.s[s],0)&&(w.s[s].held[0]>>o&1); if(!src) continue;
        v=w; v.s[t].held[0]|=1<<o; go(FILL,r,t,o); }
      bool ok=true; for(int o=C;o<M;o++){ int n=filled; for(int s=0;s<N;s++) n+=w.s[s].p[r]>o-C; if(n<(c.mRepairOne?1:c.wq)) ok=false; }
      if(joining&&ever+filled<c.W) ok=false;
      if(M>C) for(int t=0;t<N;t++){ const Srv&x=w.s[t]; if(x.p[r]>=M-C) continue; int o=C+x.p[r];
        if(!alive(x,k)||(k==0&&x.rn)) continue; if(!x.opened[k]&&!x.sealed[k]) continue; // a repair store names the disk that the attempt knew if(!c.repUnsealed&&!x.sealed[k]) continue;
        bool src=false; for(int s=0;s<N;s++) src|=alive(w.s[s],k)&&(w.s[s].held[k]>>o&1); if(!src) continue;
        bool pre=o==0||((x.held[k]|(c.dmg==1?x.uns[k]:0))>>(o-1)&1)||x.kc[k]>=o||(c.evidence&&C>=o)||c.mNoPrefix||((x.held[k]|(c.dmg==1?x.uns[k]:0))>>o&1);
        v=w; if(!pre){ if(!c.live) go(STUCK,r,t,o,"I9: repair store refused by the prefix rule"); continue; }
        v.s[t].held[k]|=1<<o; v.s[t].p[r]++; if(c.dmg) v.s[t].uns[k]&=~(1<<o); if(c.mRepairAck) v.s[t].ack[k]|=1<<o; if(c.repC&&C>v.s[t].kc[k]) v.s[t].kc[k]=C;
        if(c.mRepairKc){ v.s[t].kc[k]=max((int)x.kc[k],o+1); if(o+1>v.ct[k]) v.ever[k]=max((int)v.ever[k],o+1); }
        go(REPAIR,r,t,o); }
      if(ok){ v=w; clearR(v,r);
        if(u.len==k||(c.mLosEnd&&u.len==k+1)){ const char*mv=u.len!=k&&u.end[k]!=M?"I2: the end of a closed segment moved":nullptr; v.end[k]=M; if(u.len==k){ if(joining) for(int s=0;s<N;s++) if(counts(w.s[s])) v.s[s].rn=1; v.len++; if(k==0) for(int s=0;s<N;s++) v.s[s].ns1=v.s[s].inc; } go(CASWIN,r,M,k,mv); }
        else go(CASLOSE,r,M,k); }
    }
    if(R.ph){ v=u; clearR(v,r); go(ABANDON,r); }
  }
}
// a fresh attempt with the servers of `up` answering: seal all, repair all, CAS. true = segment closes
static bool canFinish(U u,int k,int up,int ask){ int M=0,C=0,n=0;
  for(int s=0;s<c.N;s++) if((up>>s&1)&&alive(u.s[s],k)){ u.s[s].sealed[k]=1; if(!(ask>>s&1)) continue; n++; M=max(M,tailOf(u.s[s],k)); C=max(C,(int)u.s[s].kc[k]); }
  if(n<c.Q) return false;
  for(int o=C;o<M;o++){ bool src=false; for(int s=0;s<c.N;s++) src|=(up>>s&1)&&alive(u.s[s],k)&&(u.s[s].held[k]>>o&1); if(!src) return false; int cnt=0;
    for(int t=0;t<c.N;t++) if((up>>t&1)&&alive(u.s[t],k)){ Srv&x=u.s[t]; bool has=x.held[k]>>o&1; u8 hd=x.held[k]|(c.dmg==1?x.uns[k]:0); bool pre=has||(hd>>o&1)||o==0||(hd>>(o-1)&1)||x.kc[k]>=o||(c.evidence&&C>=o)||c.mNoPrefix; if(pre){x.held[k]|=1<<o;cnt++;} }
    if(cnt<c.wq) return false; }
  return true; }
// with replacements: the disks that are left are a seal quorum but no write quorum; can an attempt fill new ones from them?
static bool canReplace(const U&u,int ask){ int M=0,n=0; for(int s=0;s<c.N;s++) if(ask>>s&1){ n++; M=max(M,tailOf(u.s[s],0)); }
  if(n<c.Q) return true; // no seal quorum is left: for a person to decide
  for(int o=0;o<M;o++){ bool src=false; for(int s=0;s<c.N;s++) src|=alive(u.s[s],0)&&(u.s[s].held[0]>>o&1); if(!src) return false; }
  return true; }
static bool liveCheck(const U&u,int&kk,int&dm){ int k=u.len; if(k>=c.segs) return true;
  if(c.repl&&k==0){ int left=0,n=0; for(int s=0;s<c.N;s++) if(alive(u.s[s],0)){ left|=1<<s; n++; } if(n<c.W&&!canReplace(u,left)){kk=0;dm=0;return false;} if(n<c.W) return true; }
  int need=(c.live==2||c.live==4)?c.Q:c.W;
  for(int up=0;up<(1<<c.N);up++){ int n=0; for(int s=0;s<c.N;s++) n+=(up>>s&1)&&alive(u.s[s],k)&&!(c.dmg&&u.s[s].usl[0]); if(n<need) continue; if(c.live==2||c.live==4){ bool all=true; for(int s=0;s<c.N;s++) if(!(up>>s&1)) all=false; if(!all) continue; } bool okk=canFinish(u,k,up,up); if(c.live>=3) for(int ask=1;ask<(1<<c.N)&&!okk;ask++) if((ask&up)==ask) okk=canFinish(u,k,up,ask); if(!okk){kk=k;dm=(~up)&((1<<c.N)-1);return false;} }
  return true; }
static string label(int a,int x,int y,int z){ char b[160];
  switch(a){
   case OPEN: sprintf(b,"open seg%d on s%d",x,y);break; case STORE: sprintf(b,"Store(seg%d,o%d) -> s%d: durable, acks",x,z,y);break;
   case CHECK: sprintf(b,"s%d checks 'not sealed' for (seg%d,o%d): passes",y,x,z);break; case LAND: sprintf(b,"s%d: (seg%d,o%d) lands, acks",y,x,z);break;
   case SYNC: sprintf(b,"s%d fsync",x);break; case CTPUSH: sprintf(b,"committed tail %d of seg%d -> s%d",z,x,y);break;
   case ADV: sprintf(b,"sequencer of seg%d has a write quorum for o%d: client ACKED",x,y);break; case RESTART: sprintf(b,"s%d crashes, restarts",x);break;
   case WIPE: sprintf(b,"s%d loses its disk (new storage_id)",x);break; case SEALONLY: sprintf(b,"s%d sealed for seg%d (answer lost)",y,x);break;
   case SEAL: sprintf(b,"R%d: seal seg%d on s%d, answer taken",x,z,y);break; case REPAIR: sprintf(b,"R%d: repair store o%d -> s%d",x,z,y);break;
   case CASWIN: sprintf(b,"R%d: CAS wins: seg%d ends at %d",x,z,y);break; case CASLOSE: sprintf(b,"R%d: CAS loses (had M=%d for seg%d)",x,y,z);break;
   case ABANDON: sprintf(b,"R%d gives up",x);break; case FTSTART: sprintf(b,"find-tail begins at sequencer of seg%d, notes %d",x,y);break;
   case FTCONF: sprintf(b,"s%d confirms seg%d not sealed",y,x);break; case FTDONE: sprintf(b,"find-tail of seg%d answers %d",x,y);break;
   case FTJOIN: sprintf(b,"another caller joins the round (tail now %d)",y);break; case BEL: sprintf(b,"reader on s%d takes sealed flag: segment ends at %d",x,y);break;
   case DEFI: sprintf(b,"sequencer of seg%d says: definitely not in the log (from o%d)",x,y);break; case COND: sprintf(b,"seg%d: match_offset fails at once, 'tail is %d'",x,y);break;
   case STUCK: sprintf(b,"R%d: repair store o%d -> s%d REFUSED",x,z,y);break; case LEARN: sprintf(b,"s%d is told: seg%d ends at %d",x,y,z);break; case READT: sprintf(b,"read of seg%d on s%d ends at its tail %d",y,x,z);break; case DAMAGE: sprintf(b,"s%d: (seg%d,o%d) damaged",x,y,z);break; case JOIN: sprintf(b,"R%d: s%d (a new disk) is created sealed as a replacement",x,y);break; case FILL: sprintf(b,"R%d: o%d copied to replacement s%d",x,z,y);break; case NOLIVE: sprintf(b,"no attempt can close seg%d (down mask %d)",x,y);break; case MISS: sprintf(b,"R%d: o%d in [C,M) found nowhere",x,y);break; default: sprintf(b,"?"); }
  return b; }

static void initS(U&u){ memset(&u,0,sizeof u); if(!c.open0){ for(int s=0;s<c.N;s++)u.s[s].opened[0]=1; u.ready[0]=1; } }
static inline u64 hs(const St&t){ u64 h=t.g*0x9E3779B97F4A7C15ull; for(int i=0;i<c.N;i++){ h^=t.s[i]; h*=0xff51afd7ed558ccdull; h^=h>>32; } h*=0xc4ceb9fe1a85ec53ull; return h^(h>>29); }

static vector<u64> arena; static vector<uint32_t> par; static vector<uint32_t> tab; static u64 mask_; static size_t nst=0;
static inline u64* at(size_t i){ return &arena[i*(c.N+1)]; }
static bool addState(const St&t,uint32_t parent){
  u64 h=hs(t)&mask_; for(;;){ uint32_t e=tab[h]; if(!e) break; u64*q=at(e-1); if(q[0]==t.g&&!memcmp(q+1,t.s,8*c.N)) return false; h=(h+1)&mask_; }
  if(nst*10>=tab.size()*7){ size_t ns=tab.size()*2; vector<uint32_t>().swap(tab); tab.assign(ns,0); mask_=ns-1;
    for(size_t i=0;i<nst;i++){ St q; q.g=at(i)[0]; memcpy(q.s,at(i)+1,8*c.N); u64 hh=hs(q)&mask_; while(tab[hh])hh=(hh+1)&mask_; tab[hh]=i+1; }
    h=hs(t)&mask_; while(tab[h])h=(h+1)&mask_; }
  arena.push_back(t.g); for(int i=0;i<c.N;i++) arena.push_back(t.s[i]); par.push_back(parent); tab[h]=++nst; return true; }

struct Found { string bad; vector<string> tr; };
static void printTrace(const vector<string>&tr,const char*bad){ printf("VIOLATION %s\n  steps=%zu\n",bad,tr.size()); for(size_t i=0;i<tr.size();i++) printf("  %2zu. %s\n",i+1,tr[i].c_str()); }

struct Match:Emit{ St want; bool wantBad; bool done=false; U out; string lab; void operator()(const U&v,const char*bad,int a,int x,int y,int z)override{ if(done)return; if(wantBad){ if(!bad)return; } else if(bad) return; St t; memset(&t,0,sizeof t); canon(v,t); if(eq_(t,want)){done=true;out=v;lab=label(a,x,y,z);} } };
static void replay(size_t idx,const St*last,const char*bad){
  vector<size_t> path; size_t i=idx; for(;;){ path.push_back(i); if(par[i]==0xffffffffu)break; i=par[i]; } reverse(path.begin(),path.end());
  U cur; initS(cur); vector<string> tr;
  for(size_t j=1;j<=path.size();j++){ Match m; memset(&m.want,0,sizeof m.want); bool fin=j==path.size(); if(fin&&!last)break; if(fin) m.want=*last; else {m.want.g=at(path[j])[0]; memcpy(m.want.s,at(path[j])+1,8*c.N);} m.wantBad=fin; succ(cur,m); if(!m.done){tr.push_back("<replay lost>");break;} cur=m.out; tr.push_back(m.lab); }
  printTrace(tr,bad); }

static u64 actCount[32];
struct BfsE:Emit{ uint32_t p; u64 trans=0; bool stop=false; map<string,int> seen; void operator()(const U&v,const char*bad,int a,int x,int y,int z)override{ if(stop)return; trans++; actCount[a]++; St t; memset(&t,0,sizeof t); canon(v,t);
   if(bad){ replay(p,&t,bad); stop=true; return; } addState(t,p); } };

static void bfs(){ auto t0=chrono::steady_clock::now(); tab.assign(1<<20,0); mask_=tab.size()-1; U u; initS(u); St t; memset(&t,0,sizeof t); canon(u,t); addState(t,0xffffffffu); BfsE E; size_t i=0,lev=0,levEnd=1; bool cut=false;
  for(;i<nst&&!E.stop;i++){ if(i==levEnd){lev++;levEnd=nst;} St q; memset(&q,0,sizeof q); q.g=at(i)[0]; memcpy(q.s,at(i)+1,8*c.N); unpack(q,u); E.p=i;
    if(c.live){ int kk,dm; if(!liveCheck(u,kk,dm)){ char b[300]; int o=sprintf(b,"L1: no attempt can close segment %d; state (canonical order, held/kc/sealed/wiped):",kk); for(int s=0;s<c.N;s++) o+=sprintf(b+o," [%d/%d/%d/%d%s]",u.s[s].held[kk],u.s[s].kc[kk],u.s[s].sealed[kk],!alive(u.s[s],kk),(dm>>s&1)?" DOWN":""); replay(i,nullptr,b); E.stop=true; break; } }
    succ(u,E);
    if((i&0xffff)==0){ double el=chrono::duration<double>(chrono::steady_clock::now()-t0).count(); if(nst>c.maxStates||el>c.secs){cut=true;break;} } }
  double el=chrono::duration<double>(chrono::steady_clock::now()-t0).count();
  printf("%s states=%zu expanded=%zu transitions=%llu depth=%zu time=%.1fs\n",E.stop?"FAIL":cut?"CUT (all states to the depth shown -1, no violation)":"EXHAUSTIVE-OK",nst,i,(unsigned long long)E.trans,lev,el);
  if(!E.stop){ printf("  actions:"); const char*nm[]={"OPEN","STORE","CHECK","LAND","SYNC","CTPUSH","ADV","RESTART","WIPE","SEALONLY","SEAL","REPAIR","CASWIN","CASLOSE","ABANDON","FTSTART","FTCONF","FTDONE","FTJOIN","BEL","DEFI","COND","STUCK","MISS","LEARN","READT","NOLIVE","DAMAGE","JOIN","FILL"}; for(int a=0;a<30;a++) if(actCount[a]) printf(" %s=%llu",nm[a],(unsigned long long)actCount[a]); printf("\n"); } }

static u64 rs; static inline u64 rnd(){ rs^=rs<<13; rs^=rs>>7; rs^=rs<<17; return rs*0x2545F4914F6CDD1Dull; }
struct WalkE:Emit{ vector<U> v; vector<array<int,4>> a; vector<double> w; const char*bad=nullptr; string badLab; void operator()(const U&x,const char*b,int A,int X,int Y,int Z)override{ if(b&&!bad){bad=b;badLab=label(A,X,Y,Z);} 
   static const double wt[30]={1,1.5,1.5,1.5,0.5,0.6,1.5,0.06,0.02,0.02,0.12,1,1,0.6,0.04,0.15,1,1,1,1,1,1,1,1,0.5,1,1,0.05,1,1.5}; v.push_back(x); a.push_back({A,X,Y,Z}); w.push_back(wt[A]); } };
static void walk(){ auto t0=chrono::steady_clock::now(); rs=c.seed*0x9E3779B97F4A7C15ull+1; u64 walks=0,steps=0; u64 fp=0; vector<u64> bloom(1<<24,0);
  for(;;){ U u; initS(u); vector<string> tr; walks++; int post=0;
    for(int d=0;d<c.depth;d++){ WalkE E; succ(u,E); if(E.bad){ tr.push_back(E.badLab); printTrace(tr,E.bad); printf("FAIL walks=%llu steps=%llu\n",(unsigned long long)walks,(unsigned long long)steps); return; }
      if(E.v.empty()||(u.len>=c.segs&&++post>25))break; double s=0; for(double x:E.w)s+=x; double q=(rnd()>>11)*(1.0/9007199254740992.0)*s; size_t i=0; while(i+1<E.w.size()&&q>=E.w[i]){q-=E.w[i];i++;} u=E.v[i]; auto&a=E.a[i]; actCount[a[0]]++; tr.push_back(label(a[0],a[1],a[2],a[3])); steps++;
      St t; memset(&t,0,sizeof t); canon(u,t); u64 h=hs(t)>>34; u64&bw=bloom[h>>6]; if(!(bw>>(h&63)&1)){bw|=1ull<<(h&63);fp++;} }
    if((walks&255)==0){ double el=chrono::duration<double>(chrono::steady_clock::now()-t0).count(); if(el>c.secs)break; } }
  printf("SAMPLED-OK walks=%llu steps=%llu distinct_states>=%llu depth=%d cas_wins=%llu cas_loses=%llu repairs=%llu acks=%llu wipes=%llu finds=%llu\n",(unsigned long long)walks,(unsigned long long)steps,(unsigned long long)fp,c.depth,(unsigned long long)actCount[CASWIN],(unsigned long long)actCount[CASLOSE],(unsigned long long)actCount[REPAIR],(unsigned long long)actCount[ADV],(unsigned long long)actCount[WIPE],(unsigned long long)actCount[FTDONE]); }

int main(int ac,char**av){
  map<string,int*> k={{"N",&c.N},{"W",&c.W},{"R",&c.R},{"Q",&c.Q},{"FQ",&c.FQ},{"wq",&c.wq},{"wipes",&c.wipes},{"A0",&c.A[0]},{"A1",&c.A[1]},{"segs",&c.segs},{"ft",&c.ft},{"vol",&c.vol},{"ctAfterSeal",&c.ctAfterSeal},{"tailMax",&c.tailMax},{"countTails",&c.countTails},{"evidence",&c.evidence},{"repUnsealed",&c.repUnsealed},{"open0",&c.open0},{"awaitOpen",&c.awaitOpen},{"sealOnly",&c.sealOnly},{"prune",&c.prune},{"repl",&c.repl},{"mReplPart",&c.mReplPart},{"mReplVote",&c.mReplVote},{"mReplEarly",&c.mReplEarly},{"mReplStale",&c.mReplStale},
   {"mUnsealed",&c.mUnsealed},{"mRepairKc",&c.mRepairKc},{"mNoPrefix",&c.mNoPrefix},{"mAckEarly",&c.mAckEarly},{"mSealEarly",&c.mSealEarly},{"mWipeSeal",&c.mWipeSeal},{"mWipeFt",&c.mWipeFt},{"mWipeStore",&c.mWipeStore},{"mBel",&c.mBel},{"mImplicit",&c.mImplicit},{"mDupAck",&c.mDupAck},{"mSealRace",&c.mSealRace},{"mSealUnk",&c.mSealUnk},{"mDef",&c.mDef},{"mFtJoin",&c.mFtJoin},{"mI3",&c.mI3},{"mLosEnd",&c.mLosEnd},{"mCond",&c.mCond},{"mOpenUnseal",&c.mOpenUnseal},{"mRepairOne",&c.mRepairOne},{"mMin",&c.mMin},{"mRepairAck",&c.mRepairAck},{"live",&c.live},{"dmg",&c.dmg},{"repC",&c.repC},{"learnEnd",&c.learnEnd},{"mStaleRead",&c.mStaleRead},{"mStuckWipe",&c.mStuckWipe},{"secs",&c.secs},{"depth",&c.depth}};
  for(int i=1;i<ac;i++){ string a=av[i]; size_t e=a.find('='); string n=a.substr(0,e),v=a.substr(e+1); if(n=="mode")c.mode=v; else if(n=="max")c.maxStates=strtoull(v.c_str(),0,10); else if(n=="seed")c.seed=strtoull(v.c_str(),0,10); else if(k.count(n))*k[n]=atoi(v.c_str()); else {fprintf(stderr,"unknown %s\n",n.c_str());return 2;} }
  if(c.Q<0)c.Q=c.N-c.W+1; if(c.FQ<0)c.FQ=c.W; if(c.wipes<0)c.wipes=c.W-1; if(c.wq<0)c.wq=c.W;
  printf("#"); for(int i=1;i<ac;i++)printf(" %s",av[i]); printf("  [N=%d W=%d Q=%d R=%d wipes<=%d]\n",c.N,c.W,c.Q,c.R,c.wipes); fflush(stdout);
  if(c.mode=="walk") walk(); else bfs(); }
